#!/bin/sh
# Generates the Python message classes of litedetr.v1, for the service and its client, and of the Open
# Inference Protocol, for the service:
#   sh proto/generate.sh [PYTHON] [ROOT]
# PYTHON must have grpcio-tools; ROOT contains service/ and lite_detr_client/ (default: this repository).
#
# No gRPC stubs are generated: the methods are in service/rpc/server.py, service/oip/grpc_service.py and
# lite_detr_client/grpc_wire.py, so that neither side depends on one version of grpcio.
set -eu

proto=$(dirname "$0")
python=${1:-"$proto/../.venv/bin/python"}
root=${2:-"$proto/.."}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

"$python" -m grpc_tools.protoc --proto_path="$proto" \
    --python_out="$stage" --pyi_out="$stage" \
    litedetr/v1/detection.proto inference/grpc_service.proto

for package in service/rpc/pb lite_detr_client/pb; do
    mkdir -p "$root/$package"
    cp "$stage"/litedetr/v1/detection_pb2.py "$stage"/litedetr/v1/detection_pb2.pyi "$root/$package/"
done

# Public clients of the Open Inference Protocol have messages with the same names, and a descriptor pool
# holds each name once: ours use a pool of their own, so that both can be loaded in one process.
package=service/oip/pb
mkdir -p "$root/$package"
sed 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' \
    "$stage"/inference/grpc_service_pb2.py >"$root/$package/grpc_service_pb2.py"
cp "$stage"/inference/grpc_service_pb2.pyi "$root/$package/"
