// Stands in for libnvcuvid.so.1 in the tests of video decoding: every picture is grey, with the luma 126. Has the
// functions that FFmpeg looks up; those that the tests do not use do nothing. Declarations follow the Video Codec SDK 12.

#include <stdlib.h>

typedef struct {
    unsigned long width, height, surfaces;
    int codec, chroma;
    unsigned long flags, bit_depth_minus_8;
} CreateInfo;

typedef struct {
    unsigned long width, height, sample_bytes, pictures;
} Decoder;

#define UNUSED(F) \
    F(cuvidGetDecodeStatus) F(cuvidReconfigureDecoder) F(cuvidMapVideoFrame) F(cuvidUnmapVideoFrame) \
    F(cuvidCtxLockCreate) F(cuvidCtxLockDestroy) F(cuvidCtxLock) F(cuvidCtxUnlock) F(cuvidCreateVideoSource) \
    F(cuvidCreateVideoSourceW) F(cuvidDestroyVideoSource) F(cuvidSetVideoSourceState) F(cuvidGetVideoSourceState) \
    F(cuvidGetSourceVideoFormat) F(cuvidGetSourceAudioFormat) F(cuvidCreateVideoParser) F(cuvidParseVideoData) \
    F(cuvidDestroyVideoParser)
#define DEFINE(name) int name(void) { return 0; }
UNUSED(DEFINE)

int cuvidCreateDecoder(void **decoder, CreateInfo *info) {
    Decoder *made = calloc(1, sizeof *made);
    if (getenv("FAKE_REFUSED_STREAMS"))
        return 801;
    made->width = info->width;
    made->height = info->height;
    made->sample_bytes = info->bit_depth_minus_8 ? 2 : 1;
    *decoder = made;
    return 0;
}

int cuvidDestroyDecoder(Decoder *decoder) {
    free(decoder);
    return 0;
}

int cuvidDecodePicture(Decoder *decoder, void *picture) {
    return getenv("FAKE_REFUSED_PICTURES") && ++decoder->pictures == 3 ? 700 : 0;
}

int cuvidMapVideoFrame64(Decoder *d, int index, unsigned long long *memory, unsigned *pitch, void *options) {
    size_t stride = d->width * d->sample_bytes + 64, rows = d->height * 3 / 2;
    unsigned char *pixels = malloc(stride * rows);
    for (size_t y = 0; y < rows; y++) {
        for (size_t x = 0; x < d->width; x++) {
            unsigned sample = y < d->height ? 126 : 128;
            if (d->sample_bytes == 1)
                pixels[y * stride + x] = sample;
            else
                ((unsigned short *)(pixels + y * stride))[x] = sample << 8;
        }
    }
    *memory = (unsigned long long)pixels;
    *pitch = stride;
    return 0;
}

int cuvidUnmapVideoFrame64(Decoder *decoder, unsigned long long memory) {
    free((void *)memory);
    return 0;
}
