# `./x dist --try`: runs what `./x dist` made on bare root file systems, from the wheel and as the image's files.
# Sourced by tools/packaging/dist.sh.

# Releases of Debian, if apt's own mirror has them; their versions of glibc are 2.28, 2.31, 2.36 and 2.41.
TRY_SUITES=(buster bullseye bookworm trixie)

# Tries the files in $1; $2 is scratch, $3 the version. Prints a table of times, also into target/dist-build/tried.
try_dist() {
    local out=$1 build=$2 version=$3 suite root
    shift 3
    # Times have a decimal point.
    local -x LC_ALL=C
    local suites=("${@:-${TRY_SUITES[@]}}") tried=$build/tried
    [ -e "$out/reel-$version-$DIST_PLATFORM.tar.xz" ] ||
        die "dist --try: target/dist has no archive; run ./x dist first"
    command -v mmdebstrap >/dev/null || install_packages mmdebstrap
    mkdir -p "$build/roots"
    printf '%-22s %-6s %8s %8s %8s %8s %8s\n' 'root file system' glibc install doctor start train serve >"$tried"
    for suite in "${suites[@]}"; do
        root=$build/roots/$suite
        if ! bare_root "$suite" "$root"; then
            printf '%-22s the package registry has no such release\n' "$suite" >>"$tried"
            continue
        fi
        cp "$out"/reel-"$version"-$DIST_PLATFORM.tar.xz* "$out/install.sh" "$root/root/"
        try_root "$suite" "$root" 'sh /root/install.sh' "$tried"
        rm -rf "$root"
    done
    try_image "$out" "$build" "$tried"
    try_wheel "$out" "$build" "$tried"
    say "times in seconds: installing; reel doctor; reel --version, not in the file cache; reel sft of 20 steps (from" \
        "the wheel: reel demo --steps 20); starting reel serve and one request"
    cat "$tried"
    ! grep -q failed "$tried" || die "dist --try: a command failed; its output is above"
}

# Unpacks the root file system of a release of Debian into the folder $2. It has the essential packages and xz, no more.
# Fails if apt's mirror has no such release.
bare_root() {
    local suite=$1 root=$2 mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
    if [ ! -e "$root.tar" ]; then
        say "making a root file system of Debian $suite"
        # mmdebstrap takes the format from the name's end.
        mmdebstrap --quiet --variant=essential --include=xz-utils "$suite" "$root.part.tar" "$mirror" >&2 || return 1
        mv "$root.part.tar" "$root.tar"
    fi
    rm -rf "$root"
    mkdir -p "$root"
    tar -x --no-same-owner --exclude='./dev/*' -C "$root" -f "$root.tar"
}

# Stores the words of a command in `in_root`, which runs the shell command $2 in the root file system $1, as its root
# and with its own process numbers.
enter() {
    in_root=(unshare --map-root-user --mount --pid --fork --kill-child sh -c '
        mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/tmp" || exit 1
        exec chroot "$0" /usr/bin/env -i HOME=/root LANG=C.UTF-8 "PATH=$2" /bin/sh -c "cd /root && $1"'
        "$1" "$2" "${TRY_PATH:-/usr/local/bin:/usr/bin:/bin}")
}

in_root() {
    local in_root
    enter "$@"
    "${in_root[@]}"
}

# Prints the seconds that a command takes, or `failed` after its output.
seconds_of() {
    local start=$EPOCHREALTIME log
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f\n", b - a }'
    else
        tail -n 20 "$log" >&2
        echo failed
    fi
    rm "$log"
}

# Drops a program and its libraries from the cache of the kernel: the next start reads them from disk.
forget() {
    local file
    for file in "$1" "$(dirname "$1")"/../lib/reel/*.so.*; do
        dd if="$file" iflag=nocache count=0 status=none
    done
}

# Installs in the root file system $2 (whose name is $1) by the shell command $3, runs reel, and adds a line to $4.
try_root() {
    local name=$1 root=$2 install=$3 tried=$4 glibc times=() program
    say "trying $name"
    glibc=$(in_root "$root" 'ldd --version' | sed -n '1s/.* //p')
    times+=("$(seconds_of in_root "$root" "$install")")
    times+=("$(seconds_of in_root "$root" 'reel doctor')")
    program=$root$(in_root "$root" 'readlink -f "$(command -v reel)"')
    forget "$program"
    times+=("$(seconds_of in_root "$root" 'reel --version')")
    training_folder "$root/root"
    times+=("$(seconds_of in_root "$root" "$TRY_TRAINING")")
    times+=("$(seconds_of serve_once "$root")")
    printf '%-22s %-6s %8s %8s %8s %8s %8s\n' "$name" "$glibc" "${times[@]}" >>"$tried"
}

# Trains a tiny model on the rows of `training_folder`.
TRY_TRAINING='reel init --preset tiny --out tiny && reel sft --model tiny --data rows.jsonl --media-root . --out run \
    --max-steps 20 --max-frames 4 --learning-rate 1e-3 --device cpu --report-to none && test ! -s run/skipped.jsonl'

# Puts videos in H.264, VP9 and MPEG-4, in three containers, and a row about each into the folder $1.
training_folder() {
    local name
    for name in h264_709.mp4 h264_bframes_audio.mp4 h264_vfr.mp4 vp9.webm mpeg4_odd.avi; do
        cp "tests/golden/clips/$name" "$1/"
        printf '{"messages": [{"role": "user", "content": [{"type": "video", "video": "%s"}, %s]}, %s]}\n' "$name" \
            '{"type": "text", "text": "What happens?"}' '{"role": "assistant", "content": "A ball rolls."}'
    done >"$1/rows.jsonl"
}

# Starts reel serve in the root file system $1 on the trained model, and asks it for one completion.
serve_once() {
    local root=$1 port=$((20000 + RANDOM % 10000)) server answer='' in_root
    enter "$root" "exec reel serve --model run --device cpu --port $port"
    "${in_root[@]}" &
    server=$!
    local body='{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}'
    for _ in {1..300}; do
        kill -0 "$server" 2>/dev/null || break
        if answer=$(request "$port" "$body" 2>/dev/null) && [ -n "$answer" ]; then break; fi
        sleep 0.1
    done
    # unshare ignores SIGTERM while its child runs.
    kill -KILL "$server" 2>/dev/null
    wait "$server" || true
    printf '%s\n' "$answer"
    grep -q '"choices"' <<<"$answer"
}

# Sends one chat request to a port of this machine and prints the answer.
request() {
    exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf '%s\r\n' 'POST /v1/chat/completions HTTP/1.1' 'Host: localhost' 'Content-Type: application/json' \
        "Content-Length: ${#2}" 'Connection: close' '' >&3
    printf '%s' "$2" >&3
    cat <&3
    exec 3>&-
}

# Lays out the files of the Containerfile on its base (Debian 12) and runs its entry point.
try_image() {
    local out=$1 build=$2 tried=$3 root=$2/roots/image source target path
    bare_root bookworm "$build/roots/bookworm" || return 0
    rm -rf "$root"
    mv "$build/roots/bookworm" "$root"
    # Substitutes ARG values, then follows ADD and ENV as a builder does.
    local version
    version=$(sed -n 's/^ARG VERSION=//p' "$out/Containerfile")
    while read -r _ source target; do
        mkdir -p "$root$target"
        tar -xJ --no-same-owner -C "$root$target" -f "$out/$source"
    done < <(sed -n "s/\$VERSION/$version/g; /^ADD /p" "$out/Containerfile")
    path=$(sed -n "s/\$VERSION/$version/g; s/^ENV PATH=//p" "$out/Containerfile")
    TRY_PATH=$path try_root 'image' "$root" true "$tried"
    rm -rf "$root"
}

# Installs the wheel in a fresh virtual environment of this machine and runs the program.
try_wheel() {
    local out=$1 venv=$2/venv tried=$3 python times=()
    say "trying the wheel"
    python=$(python_with_venv) || die "dist --try: the wheel's environment needs python3-venv; install it"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    times+=("$(seconds_of "$venv/bin/pip" install --quiet --no-index --disable-pip-version-check "$out"/reel-*.whl)")
    times+=("$(seconds_of "$venv/bin/reel" doctor)")
    forget "$venv/bin/reel"
    times+=("$(seconds_of "$venv/bin/reel" --version)")
    times+=("$(seconds_of "$venv/bin/reel" demo --steps 20 --held-out 8 --out "$venv/demo")")
    [[ $("$venv/bin/reel" doctor) == *"$venv/lib/reel"* ]] || times+=(failed)
    printf '%-22s %-6s %8s %8s %8s %8s\n' wheel "$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)" "${times[@]}" >>"$tried"
    rm -rf "$venv"
}
