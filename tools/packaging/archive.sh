# Part of `./x dist`: lays out the installed files, and packs them as an archive and as a Python wheel. Sourced by
# tools/packaging/dist.sh.

# Lays out the files of an installation in the folder $1: the program $2, FFmpeg and its licences from the build folder
# $3, completions, manual pages and documents. All paths are absolute.
lay_out() {
    local root=$1 program=$2 build=$3 doc=$1/share/doc/reel
    rm -rf "$root"
    mkdir -p "$root"/{bin,lib/reel,share/man/man1} "$doc"
    mkdir -p "$root"/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
    strip -o "$root/bin/reel" "$program"
    cp "$build"/ffmpeg/lib/*.so.* "$root/lib/reel/"
    ffmpeg_licences "$root/lib/reel" "$build/sources" "$build/ffmpeg"
    "$root/bin/reel" completions bash >"$root/share/bash-completion/completions/reel"
    "$root/bin/reel" completions zsh >"$root/share/zsh/site-functions/_reel"
    "$root/bin/reel" completions fish >"$root/share/fish/vendor_completions.d/reel.fish"
    "$root/bin/reel" man --out "$root/share/man/man1" >/dev/null
    cp LICENSE CHANGELOG.md docs/third-party.md "$doc/"
    readme_excerpt >"$doc/README.md"
    crate_licences >"$doc/licences-of-crates.txt"
    chmod -R u=rwX,go=rX "$root"
}

# Prints the README from its beginning to the end of the installation, without links into the repository.
readme_excerpt() {
    sed -E '/^## From source/,$d; s/\[([^]]+)\]\([^)]*\)/\1/g' README.md
}

# Prints name, version and licence of each crate in the program, and the texts of their licences, equal ones once.
crate_licences() {
    local crates files name version file hash last=''
    crates=$(cargo tree --locked -p reel --edges normal --prefix none --format '{p} {l}' \
        --target x86_64-unknown-linux-gnu | grep -v ' (/' | sed 's/ (proc-macro)//; s/ (\*)$//; s/ v/ /' | sort -u)
    printf 'reel contains these crates:\n\n%s\n' "$crates"
    files=$(mktemp)
    while read -r name version _; do
        for file in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$version"/{LICEN[SC]E,COPYING,NOTICE}*; do
            [ ! -f "$file" ] || printf '%s %s %s\n' "$(sha256sum <"$file" | cut -c-64)" "$name-$version" "$file"
        done
    done <<<"$crates" >"$files"
    sort "$files" | while read -r hash crate file; do
        [ "$hash" != "$last" ] || continue
        last=$hash
        printf '\n%s\n' "$(printf '=%.0s' {1..120})"
        printf '%s:\n\n' "$(awk -v h="$hash" '$1 == h { print $2 }' "$files" | sort -u | xargs | fold -s -w 118)"
        cat "$file"
    done
    rm "$files"
}

# Packs the folder $1/$2 as $3/$2.tar.xz with a checksum beside it. The same files give the same bytes.
write_archive() {
    local parent=$1 name=$2 out=$3
    tar -c --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$parent" "$name" |
        xz -T1 --lzma2=preset=6,dict=64MiB >"$out/$name.tar.xz"
    (cd "$out" && sha256sum "$name.tar.xz" >"$name.tar.xz.sha256")
}

# Packs the files of the installation $1 as a wheel of version $4 in the folder $3; $2 is scratch. pip copies
# `.data/scripts` to the environment's bin and `.data/data` to its root, which is the layout of an installation. The
# wheel has no Python code.
write_wheel() {
    local root=$1 stage=$2 out=$3 version=$4
    local data=$stage/reel-$version.data info=$stage/reel-$version.dist-info
    local wheel=$out/reel-$version-py3-none-$WHEEL_PLATFORM.whl python
    rm -rf "$stage"
    mkdir -p "$data/scripts" "$data/data" "$info/licenses"
    cp "$root/bin/reel" "$data/scripts/"
    cp -r "$root/lib" "$root/share" "$data/data/"
    cp LICENSE "$info/licenses/"
    printf '%s\n' 'Wheel-Version: 1.0' 'Generator: reel' 'Root-Is-Purelib: false' \
        "Tag: py3-none-$WHEEL_PLATFORM" >"$info/WHEEL"
    {
        printf '%s\n' 'Metadata-Version: 2.1' 'Name: reel' "Version: $version" \
            "Summary: $(sed -n '/^\[package\]/,/^\[/s/^description = "\(.*\)"/\1/p' Cargo.toml)" \
            'License: Apache-2.0; FFmpeg in lib/reel: LGPL-2.1-or-later; dav1d in it: BSD-2-Clause' \
            'Classifier: Operating System :: POSIX :: Linux' 'Description-Content-Type: text/markdown' ''
        cat "$root/share/doc/reel/README.md"
    } >"$info/METADATA"
    write_record "$stage" "reel-$version.dist-info/RECORD"
    # Equal times in equal wheels; a zip archive stores none before 1980.
    find "$stage" -exec touch -d '1980-01-01 12:00Z' {} +
    python=$(command -v python3) ||
        die "dist: python3 is not installed, and its zipfile writes the wheel; install python3"
    rm -f "$wheel"
    (cd "$stage" && "$python" -m zipfile -c "$wheel" "reel-$version.data" "reel-$version.dist-info")
}

# Writes the list of the files of a wheel, with their hashes (SHA-256 in URL-safe base64) and sizes, to the file $2 in
# the folder $1.
write_record() {
    local stage=$1 record=$2 file hash
    (
        cd "$stage"
        find . -type f -printf '%P\n' | LC_ALL=C sort | while read -r file; do
            hash=$(sha256sum <"$file" | cut -c-64 | sed 's/../\\x&/g')
            hash=$(printf '%b' "$hash" | base64 | tr '+/' '-_' | tr -d '=')
            printf '%s,sha256=%s,%s\n' "$file" "$hash" "$(stat -c %s "$file")"
        done
        printf '%s,,\n' "$record"
    ) >"$stage.record"
    mv "$stage.record" "$stage/$record"
}
