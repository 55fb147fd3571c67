# Part of `./x dist`: builds FFmpeg's libraries for the archive. Sourced by tools/packaging/dist.sh.
#
# The source is that of this system's package, so the libraries are those of the distribution without the GPL parts.
# FFmpeg is LGPL 2.1 or later, and dav1d, which is linked into libavcodec and decodes AV1, has the BSD 2-clause licence.

# What the libraries can read and write: the containers of input/src/media/video/ffmpeg/demux.rs, the video codecs in them,
# and the codecs and containers in which reel writes videos.
FFMPEG_DEMUXERS=mov,matroska,avi,gif,mpegts,mpegtsraw,mpegps,mpegvideo,flv,asf,ogg,h264,hevc,ivf,obu,m4v,mjpeg,nut,\
mxf,wtv,rm,yuv4mpegpipe,apng
FFMPEG_DECODERS=h264,hevc,vp8,vp9,libdav1d,mpeg4,mpeg1video,mpeg2video,mpegvideo,msmpeg4v1,msmpeg4v2,msmpeg4v3,h261,\
h263,h263i,h263p,flv,wmv1,wmv2,wmv3,vc1,rv10,rv20,rv30,rv40,mjpeg,mjpegb,gif,theora,vp3,vp6,vp6f,prores,dnxhd,dvvideo,\
ffv1,huffyuv,ffvhuff,rawvideo,qtrle,svq1,svq3,cinepak,msvideo1,utvideo
FFMPEG_PARSERS=h264,hevc,vp8,vp9,av1,mpeg4video,mpegvideo,h261,h263,vc1,rv30,rv40,mjpeg,gif,vp3,dnxhd,aac,aac_latm,\
ac3,mpegaudio,opus,vorbis,flac
FFMPEG_BSFS=vp9_superframe,vp9_superframe_split,av1_frame_merge,av1_frame_split,extract_extradata,h264_mp4toannexb,\
hevc_mp4toannexb,mpeg4_unpack_bframes,null
FFMPEG_ENCODERS=mpeg4,gif
FFMPEG_MUXERS=mp4,mov,matroska,webm,avi,gif

# Runs apt-get with lists of source packages below $1, an absolute path; the system's configuration stays as it is.
apt_source() {
    local folder=$1
    shift
    apt-get -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$folder/sources" \
        -o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root "$@"
}

# Downloads the source packages of FFmpeg and dav1d into the folder $1, an absolute path. apt checks their signatures.
ffmpeg_sources() {
    local out=$1 apt=$1.apt file
    [ ! -e "$out" ] || return 0
    command -v apt-get >/dev/null ||
        die "dist: FFmpeg's source comes from apt-get, which this system has not; build on Debian 12 or Ubuntu 24.04"
    say "fetching the sources of FFmpeg and dav1d"
    rm -rf "$out.part" "$apt"
    mkdir -p "$out.part" "$apt/lists/partial" "$apt/cache" "$apt/sources"
    for file in /etc/apt/sources.list.d/*.sources; do
        [ ! -e "$file" ] || sed -E 's/^Types:.*/Types: deb-src/' "$file" >"$apt/sources/${file##*/}"
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ ! -e "$file" ] || sed -nE 's/^deb(-src)?[[:space:]]/deb-src /p' "$file" | sort -u >"$apt/sources/${file##*/}"
    done
    apt_source "$apt" update -qq || die "dist: apt-get update of source packages failed; check the network"
    (cd "$out.part" && apt_source "$apt" source -qq --download-only ffmpeg dav1d) ||
        die "dist: apt-get source ffmpeg dav1d failed; check that the distribution offers source packages"
    rm -rf "$apt"
    # So the folder is complete or absent.
    mv "$out.part" "$out"
}

# Builds the libraries from the source packages in $1, in the folder $2: headers and pkg-config files in $2/install,
# the files of the archive in $2/lib. The paths are absolute.
build_ffmpeg() {
    local sources=$1 work=$2 flags dsc
    flags="$GLIBC ${BUILD_WHEELS[*]} $(cat tools/packaging/ffmpeg.sh "$sources"/*.dsc | sha256sum)"
    [ "$(cat "$work/built" 2>/dev/null)" != "$flags" ] || return 0
    say "building FFmpeg's libraries (LGPL) for glibc $GLIBC"
    rm -rf "$work"
    mkdir -p "$work/install" "$work/lib"
    for dsc in "$sources"/ffmpeg_*.dsc "$sources"/dav1d_*.dsc; do
        dpkg-source --no-check -x "$dsc" "$work/$(basename "${dsc%%_*}")" >"$work/log" 2>&1 || build_failed "$work"
    done
    (
        cd "$work/dav1d"
        CC=zig-cc CXX=zig-c++ meson setup build --prefix="$work/install" --libdir=lib --buildtype=release \
            --default-library=static -Denable_tools=false -Denable_tests=false
        ninja -C build install
    ) >"$work/log" 2>&1 || build_failed "$work"
    (
        cd "$work/ffmpeg"
        export PKG_CONFIG_PATH=$work/install/lib/pkgconfig
        ./configure --prefix="$work/install" --cc=zig-cc --enable-shared --disable-static --disable-programs \
            --disable-doc --disable-debug --disable-autodetect --disable-network --disable-everything \
            --disable-avdevice --disable-avfilter --disable-swresample \
            --enable-libdav1d --pkg-config-flags=--static --enable-protocol=file \
            --enable-demuxer="$FFMPEG_DEMUXERS" --enable-decoder="$FFMPEG_DECODERS" --enable-parser="$FFMPEG_PARSERS" \
            --enable-bsf="$FFMPEG_BSFS" --enable-encoder="$FFMPEG_ENCODERS" --enable-muxer="$FFMPEG_MUXERS"
        # glibc has the function up to 2.31, and zig has its symbol but not its header.
        sed -i 's/^#define HAVE_SYSCTL 1/#define HAVE_SYSCTL 0/' config.h
        grep -q '^#define FFMPEG_LICENSE "LGPL version 2.1 or later"' config.h
        make -j"$(nproc)"
        make install
    ) >"$work/log" 2>&1 || build_failed "$work"
    local library
    for library in "$work"/install/lib/lib{avutil,avcodec,avformat,swscale}.so.*; do
        # Of the three names (libavutil.so.57.28.100 and two links to it) the one that programs load.
        [[ $library =~ \.so\.[0-9]+$ ]] || continue
        cp -L "$library" "$work/lib/"
        strip --strip-unneeded "$work/lib/${library##*/}"
    done
    [ "$(find "$work/lib" -name '*.so.*' | wc -l)" = 4 ] || build_failed "$work"
    check_glibc "$work"/lib/*.so.*
    printf '%s\n' "$flags" >"$work/built"
}

build_failed() {
    tail -n 30 "$1/log" >&2
    die "dist: FFmpeg's libraries could not be built; the whole output is in $1/log"
}

# Writes the licences of the libraries, and how they were built, into the folder $1. $2 has the source packages, $3 is
# the build folder.
ffmpeg_licences() {
    local out=$1 sources=$2 work=$3
    cp "$work/ffmpeg/COPYING.LGPLv2.1" "$out/COPYING.LGPLv2.1"
    cp "$work/dav1d/COPYING" "$out/COPYING.dav1d"
    {
        echo "The libraries in this folder are FFmpeg's, built without its GPL parts, under the GNU Lesser General Public"
        echo "License 2.1 or later (COPYING.LGPLv2.1). libavcodec contains dav1d, whose licence is COPYING.dav1d."
        echo
        echo "reel opens them at run time. To use your own build of the same major versions, replace the files, or delete"
        echo "this folder: reel then opens the system's libraries of these versions."
        echo
        echo "Sources: $(cd "$sources" && echo ./*.dsc | sed 's|\./||g; s|\.dsc||g'), as in the archive of sources"
        echo "that is published beside reel. To rebuild, unpack them with dpkg-source -x, build dav1d with meson as a static library, then run in"
        echo "FFmpeg's folder, where zig-cc is \`zig cc -target x86_64-linux-gnu.$GLIBC\`:"
        echo
        sed -nE "s|^#define FFMPEG_CONFIGURATION \"(.*)\"|./configure \1|p" "$work/ffmpeg/config.h" |
            sed "s|$work/install|PREFIX|g; s|^|    |; s| --| \\\\\n        --|g"
        echo
        echo "    sed -i 's/^#define HAVE_SYSCTL 1/#define HAVE_SYSCTL 0/' config.h"
        echo "    make && make install"
    } >"$out/README"
}
