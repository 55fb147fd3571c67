#!/bin/sh
# Installs reel from its archive, without root, or removes it again.
set -eu
# One order of file names in all lists.
export LC_ALL=C

usage() {
    cat <<'TEXT'
sh install.sh [ARCHIVE] [--prefix DIR]     install reel into DIR (default: ~/.local; for root /usr/local)
sh install.sh --uninstall [--prefix DIR]   remove what an installation in DIR has added

ARCHIVE is reel-VERSION-x86_64-linux.tar.xz (default: the one beside this script). Its checksum must be beside it, in
ARCHIVE.sha256. An earlier version in DIR is replaced. Needs tar, xz and sha256sum.
TEXT
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

archive='' prefix='' uninstall=''
while [ $# -gt 0 ]; do
    case $1 in
    --prefix)
        [ $# -gt 1 ] && [ -n "$2" ] || die "--prefix: has no value; give a folder"
        prefix=$2
        shift
        ;;
    --prefix=?*) prefix=${1#--prefix=} ;;
    --uninstall) uninstall=yes ;;
    --help | -h)
        usage
        exit 0
        ;;
    -*) die "$1: no such option; sh install.sh --help lists them" ;;
    *)
        [ -z "$archive" ] || die "$1: is a second archive; give one"
        archive=$1
        ;;
    esac
    shift
done

if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then
        prefix=/usr/local
    else
        prefix=${HOME:?is not set; give --prefix}/.local
    fi
fi
# The list of the installed files, relative to the prefix, and of the folders made for them, which end with a slash.
list=share/doc/reel/installed-files

# Removes the files of the installation that are not in the list $1, and the folders made for them that are empty.
remove_all_but() {
    [ -e "$prefix/$list" ] || return 0
    sort "$prefix/$list" | comm -23 - "$1" >"$work/surplus"
    while IFS= read -r file; do
        case $file in
        /* | .. | ../* | */..*) die "$prefix/$list: names $file, which may be outside $prefix; remove the files by hand" ;;
        */) ;;
        *) rm -f -- "$prefix/$file" ;;
        esac
    done <"$work/surplus"
    sort -r "$work/surplus" | while IFS= read -r folder; do
        case $folder in */) rmdir -- "$prefix/$folder" 2>/dev/null || true ;; esac
    done
}

# Makes a folder below the prefix, with those that it is in, and notes the new ones.
make_folder() {
    [ ! -d "$prefix/$1" ] || return 0
    case $1 in */*) make_folder "${1%/*}" ;; esac
    mkdir "$prefix/$1"
    echo "$1/" >>"$work/folders"
}

work=$(mktemp -d) || die "no temporary folder can be created; set TMPDIR to a folder with space"
stage=''
trap 'rm -rf "$work" ${stage:+"$stage"}' EXIT
trap 'exit 1' HUP INT TERM

if [ -n "$uninstall" ]; then
    [ -z "$archive" ] || die "$archive: --uninstall needs no archive; leave it out"
    [ -e "$prefix/$list" ] ||
        die "$prefix: has no installation of reel by this script; give the --prefix of the installation"
    remove_all_but /dev/null
    echo "reel is removed from $prefix"
    exit 0
fi

if [ -z "$archive" ]; then
    for file in "$(dirname "$0")"/reel-*-x86_64-linux.tar.xz; do
        [ -e "$file" ] || die "no archive is beside this script; give its path"
        [ -z "$archive" ] || die "$file: is not the only archive beside this script; give the path of one"
        archive=$file
    done
fi
[ -f "$archive" ] || die "$archive: no such file; give the path of reel-VERSION-x86_64-linux.tar.xz"
[ -f "$archive.sha256" ] || die "$archive.sha256: no such file; download it to the archive's folder"
for program in tar xz sha256sum; do
    command -v "$program" >/dev/null ||
        die "$program: is not installed; install it (xz is in the package xz-utils or xz), then try again"
done
stated=$(cut -c-64 "$archive.sha256")
found=$(sha256sum <"$archive" | cut -c-64)
[ "$stated" = "$found" ] ||
    die "$archive: its SHA-256 is $found, not $stated as in the .sha256 file; download both again"

mkdir -p "$prefix" 2>/dev/null || die "$prefix: cannot be created; give another --prefix"
# In the same file system as the prefix, so that each file is renamed into its place, also while reel runs.
stage=$(mktemp -d "$prefix/.reel-install.XXXXXX" 2>/dev/null) ||
    die "$prefix: cannot be written to; give another --prefix"
xz -dc "$archive" | tar -x --no-same-owner -C "$stage" --strip-components=1 ||
    die "$archive: could not be unpacked into $prefix; check the space on its disk"
"$stage/bin/reel" --version >"$work/version" 2>"$work/error" ||
    die "this machine cannot run reel, which needs x86-64 Linux with glibc 2.28 or newer: $(head -n 1 "$work/error")"
(cd "$stage" && find . ! -type d | sed 's|^\./||'; echo "$list") | sort -u >"$work/list"
# The folders of an earlier version stay, its files that this version has not are removed.
{ [ ! -e "$prefix/$list" ] || grep '/$' "$prefix/$list" || true; } >"$work/folders"
sort -u "$work/list" "$work/folders" >"$work/keep"
remove_all_but "$work/keep"
while IFS= read -r file; do
    make_folder "${file%/*}"
    [ "$file" = "$list" ] || mv -f -- "$stage/$file" "$prefix/$file"
done <"$work/list"
sort -u "$work/list" "$work/folders" >"$prefix/$list"
echo "$(cat "$work/version") is installed in $prefix/bin"
case ":$PATH:" in
*":$prefix/bin:"*) ;;
*) echo "add $prefix/bin to PATH to call it by its name" ;;
esac
