"""One example change for each kind of extension in CONTRIBUTING.md, and a check that it works.

Each function in `service` and `model` changes a copy of the sources and uses the extension there.
The files that it changes are compared with the table of CONTRIBUTING.md.
"""
