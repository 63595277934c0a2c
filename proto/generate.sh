#!/bin/sh
# Writes the Python message classes of litedetr.v1 anew, for the service and for its client:
#   sh proto/generate.sh [PYTHON] [ROOT]
# PYTHON has grpcio-tools; ROOT is where service/ and lite_detr_client/ are (default: here).
#
# Services need no generated code: the four methods stand in service/rpc/server.py and
# lite_detr_client/grpc_wire.py, so neither side is tied to one version of grpcio.
set -eu

proto=$(dirname "$0")
python=${1:-"$proto/../.venv/bin/python"}
root=${2:-"$proto/.."}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

"$python" -m grpc_tools.protoc --proto_path="$proto" \
    --python_out="$stage" --pyi_out="$stage" litedetr/v1/detection.proto

for package in service/rpc/pb lite_detr_client/pb; do
    mkdir -p "$root/$package"
    cp "$stage"/litedetr/v1/detection_pb2.py "$stage"/litedetr/v1/detection_pb2.pyi "$root/$package/"
done
