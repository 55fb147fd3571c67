# `./x sim-wheel`: makes target/sim-wheel, the wheels of the Python package reel-sim. Sourced by `x`.
. tools/packaging/toolchain.sh
. tools/packaging/archive.sh

sim_wheel() {
    local out=$PWD/target/sim-wheel build=$PWD/target/sim-wheel-build
    case ${1:-} in
    '') ;;
    --try)
        try_sim_wheel "$out" "$build" "${@:2}"
        return
        ;;
    *) die "sim-wheel: $1: no such argument; give none, or --try PYTHON… after ./x sim-wheel" ;;
    esac
    [ "$(uname -m)" = x86_64 ] || die "sim-wheel: builds for x86-64 only; run it on such a machine"
    command -v objdump >/dev/null || install_packages binutils
    setup
    toolchain
    rm -rf "$out" "$build/glibc"
    mkdir -p "$build"
    say "building for glibc $GLIBC"
    maturin build --release --locked --quiet --zig --compatibility "${WHEEL_PLATFORM%_x86_64}" \
        --manifest-path sim/python/Cargo.toml --target-dir target/sim-wheel-build/target-glibc --out "$out"
    local wheel
    wheel=$(echo "$out"/*.whl)
    python3 -m zipfile -e "$wheel" "$build/glibc"
    check_glibc "$build/glibc/reel_sim/_native.abi3.so"
    build_for_musl "$build"
    pack_for_musl "$build" "$(basename "$wheel")" "$out"
    for wheel in "$out"/*.whl; do
        [ "$(stat -c %s "$wheel")" -le 15000000 ] || die "sim-wheel: $wheel is larger than 15 MB; leave files out"
    done
    say "target/sim-wheel:"
    (cd "$out" && du -h --apparent-size -- *)
}

# Builds the native module for musl into the folder $1. Rust's standard library for musl is a toolchain of its own; the one
# for glibc does as well, linked against musl with the functions of musl.c.
build_for_musl() {
    local build=$1 linker=$1/zig-musl other
    cat >"$linker" <<TEXT
#!/usr/bin/env bash
# musl has no libgcc; zig has the same functions.
exec "$(command -v python-zig)" cc -target x86_64-linux-musl -dynamic "\${@/#-lgcc_s/-lunwind}" "$PWD/tools/packaging/musl.c"
TEXT
    chmod +x "$linker"
    say "building for musl"
    RUSTFLAGS="${RUSTFLAGS:-} -Clinker=$linker" cargo build --release --locked --quiet -p reel-python \
        --target x86_64-unknown-linux-gnu --target-dir target/sim-wheel-build/target-musl
    local module=$build/target-musl/x86_64-unknown-linux-gnu/release/lib_native.so
    strip -o "$build/_native.abi3.so" "$module"
    other=$(objdump -p "$build/_native.abi3.so" | awk '$1 == "NEEDED" { print $2 }' | grep -vxF libc.so || true)
    [ -z "$other" ] || die "sim-wheel: the module for musl needs $(xargs <<<"$other"); link it against libc.so only"
}

# Writes the wheel for musl: the files of the wheel $2, unpacked in $1/glibc, with the module for musl.
pack_for_musl() {
    local build=$1 name=${2/$WHEEL_PLATFORM/musllinux_1_2_x86_64} out=$3 stage=$1/musl info
    rm -rf "$stage"
    cp -r "$build/glibc" "$stage"
    cp "$build/_native.abi3.so" "$stage/reel_sim/"
    info=$(basename "$stage"/*.dist-info)
    sed -i "s/^Tag: .*/Tag: cp39-abi3-musllinux_1_2_x86_64/" "$stage/$info/WHEEL"
    rm "$stage/$info/RECORD"
    write_record "$stage" "$info/RECORD"
    # Equal times in equal wheels; a zip archive stores none before 1980.
    find "$stage" -exec touch -d '1980-01-01 12:00Z' {} +
    (cd "$stage" && python3 -m zipfile -c "$out/$name" reel_sim "$info")
}

# Installs the wheel in $1 that fits each of the other arguments, which are Pythons, into an empty environment in $2, and
# runs the examples of the README in it.
try_sim_wheel() {
    local out=$1 build=$2 python folder start
    shift 2
    [ $# -gt 0 ] || die "sim-wheel: --try: give one or more Pythons, such as python3"
    for python in "$@"; do
        folder=$build/try
        rm -rf "$folder"
        "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --find-links "$out" \
            --only-binary :all: reel-sim
        start=$EPOCHREALTIME
        (cd "$folder" && PATH=$folder/bin:$PATH python "$OLDPWD/sim/python/tests/readme.py" "$OLDPWD/sim/python/README.md") ||
            die "sim-wheel: an example of sim/python/README.md fails with $python"
        say "$("$python" --version): the examples ran in $(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }')"
    done
}
