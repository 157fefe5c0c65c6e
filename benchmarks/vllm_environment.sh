#!/bin/sh
# Builds what benchmarks/vllm_loads.py needs in FOLDER: V, a virtual environment with what vLLM 0.33 imports on a CPU,
# and S, its unpacked wheel without compiled code. Run: benchmarks/vllm_environment.sh FOLDER (make consumers)
set -eu
mkdir -p "$1"
cd "$1"
"${PYTHON:-python3.11}" -m venv V
V/bin/pip install --quiet torch==2.13.0
V/bin/pip install --quiet "transformers>=5.16.1,<5.21" numpy safetensors sentencepiece pydantic msgspec cloudpickle pyzmq \
    psutil regex cachetools requests tqdm blake3 py-cpuinfo tokenizers protobuf fastapi aiohttp openai openai-harmony \
    prometheus_client prometheus-fastapi-instrumentator pillow tiktoken typing_extensions filelock partial-json-parser \
    jsonschema pyyaml einops depyf watchfiles pybase64 cbor2 ijson setproctitle lark llguidance numba \
    python-json-logger opencv-python-headless orjson diskcache uvloop loguru
# With their dependencies these bring Triton and torchvision, which break the import on a CPU.
V/bin/pip install --quiet --no-deps compressed-tensors==0.17.0 mistral_common xgrammar apache-tvm-ffi
V/bin/pip download --quiet --no-deps vllm==0.33.0 --dest W
V/bin/python - <<'UNPACK'
from pathlib import Path
from zipfile import ZipFile

(wheel,) = Path("W").glob("vllm-*.whl")
with ZipFile(wheel) as files:
    files.extractall("S", [name for name in files.namelist() if not name.endswith(".so")])
UNPACK
rm -r W
