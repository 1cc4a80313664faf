#!/bin/sh
# Build the wheel, install it with its test extras beside the oldest (or newest) torch, and test it from there.
# usage: PYTHON=python3.12 benchmarks/supported_range.sh oldest|newest [pytest arguments, default: -m "not slow"]
set -eu
case "${1:-}" in
  oldest) set_of="torch==2.6.* torchvision==0.21.*" ;;
  newest) set_of="torch torchvision" ;;
  *) echo "usage: PYTHON=python3.12 $0 oldest|newest [pytest arguments]" >&2; exit 2 ;;
esac
shift
[ $# -gt 0 ] || set -- -m "not slow"
here=$(cd "$(dirname "$0")/.." && pwd)
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
trap 'exit 1' INT TERM

"${PYTHON:-python3}" -m venv "$room/env"
bin=$room/env/bin
"$bin/pip" wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$room" "$here"
wheel=$(ls "$room"/bmft-*.whl)
# First what a user gets (no extras), from an empty folder.
"$bin/pip" install --quiet --disable-pip-version-check "$wheel" $set_of
mkdir "$room/empty"
cd "$room/empty"
"$bin/bmft" --help > help.txt
grep -q Usage help.txt
"$bin/bmft" demo --out demo
"$bin/pip" install --quiet --disable-pip-version-check "${wheel}[dev]" $set_of
# The tests and what they read, without the library's own source: the wheel is what is tested.
mkdir "$room/tests"
for part in tests benchmarks docs cli README.md CHANGELOG.md DESIGN.md Makefile action.yml pyproject.toml LICENSE; do
  cp -r "$here/$part" "$room/tests/"
done
cd "$room/tests"
"$bin/python" -c 'import sys, torch, torchvision, bmft
print("Python", sys.version.split()[0], "torch", torch.__version__, "torchvision", torchvision.__version__, bmft.__file__)'
"$bin/python" -m pytest "$@"
