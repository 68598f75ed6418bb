#!/bin/bash
# The C extension built with AddressSanitizer and UndefinedBehaviorSanitizer, and its tests run with it;
# what is built is thrown away. Then the decoders are fuzzed for SECONDS (default 60).
#
#   bash tests/support/sanitize.sh [SECONDS]      PYTHON=... and CC=gcc or clang choose what with
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD
python=${PYTHON:-python} cc=${CC:-gcc}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r castore conducto bench tests setup.py pyproject.toml README.md LICENSE "$copy"
rm -f "$copy"/castore/_native*.so
cd "$copy"
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
CC=$cc CFLAGS=$flags LDFLAGS="-fsanitize=address,undefined" \
    "$python" setup.py -q build_ext --inplace --force 2>build.log || {
    cat build.log
    echo "does this Python have what a build requires? pip install -e '.[test]'" >&2
    exit 1
}
asan=$($cc -print-file-name=libasan.so)
[ "$cc" = gcc ] || asan=$($cc -print-file-name=libclang_rt.asan-x86_64.so)
# Python itself leaks at its end; a mapping that is cut short is what the SIGBUS handler is for.
export LD_PRELOAD="$asan" PYTHONPATH="$copy" PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:allow_user_segv_handler=1:handle_sigbus=0:handle_abort=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
"$python" -c 'import castore, castore._native as n; assert castore.__file__.startswith("'"$copy"'"), castore; print(n.variants())'
"$python" -m pytest -q -p no:cacheprovider \
    tests/system/test_native.py tests/system/test_smallfiles.py tests/system/test_mapping.py tests/system/test_chunker.py tests/system/test_codec.py \
    tests/stream/test_anchors.py tests/stream/test_anchor_table.py tests/stream/test_lookalikes.py tests/stream/test_delta.py

unset LD_PRELOAD PYTHONMALLOC PYTHONPATH
cd "$here"
"$python" tests/support/fuzz_decoders.py "${1:-60}"
