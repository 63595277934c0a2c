#!/bin/sh
# Installs each peer into its own virtual environment: sh install.sh FOLDER [PEER ...]
# All use this project's version of Pillow, so that they decode with the same code.
set -eu
folder=${1:?usage: install.sh FOLDER [PEER ...]}
shift
here=$(dirname "$0")
pillow=$(grep -i '^pillow==' "$here/../../../requirements/lock.txt" | cut -d' ' -f1)
for peer in "${@:-pytriton mlserver mosec litserve bentoml ray}"; do
    for name in $peer; do
        case $name in
        pytriton) package=nvidia-pytriton ;;
        ray) package='ray[serve]' ;;
        *) package=$name ;;
        esac
        "${PYTHON:-python3}" -m venv "$folder/$name"
        if "$folder/$name/bin/python" -m pip install -q "$pillow" numpy orjson "$package"; then
            echo "$name is installed"
        else
            echo "$name cannot be installed" >&2
        fi
    done
done
