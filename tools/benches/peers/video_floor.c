/* The least processor time of a selection of frames: decodes what the selected frames need, in one thread, and does nothing else.
 *
 *     cc -O2 video_floor.c -o video_floor $(pkg-config --cflags --libs libavformat libavcodec libavutil)
 *     ./video_floor VIDEO INDEX...          indices in display order, ascending
 *
 * Reads all packets of the file. Each run of packets goes from a key frame to the last selected frame before the next run; frames
 * to which no other frame refers are skipped unless they are selected. Ends with status 1 unless each selected frame came out. */
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int is_in(const int64_t *sorted, int n, int64_t value) { return bsearch(&value, sorted, n, sizeof *sorted, compare) != NULL; }

static void need(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "video_floor: %s failed\n", what);
        exit(1);
    }
}

int main(int argc, char **argv) {
    AVFormatContext *file = NULL;
    const AVCodec *codec = NULL;
    need(argc > 2 && avformat_open_input(&file, argv[1], NULL, NULL) == 0 && avformat_find_stream_info(file, NULL) >= 0, "opening");
    int stream = av_find_best_stream(file, AVMEDIA_TYPE_VIDEO, -1, -1, &codec, 0), n = 0, room = 1024;
    need(stream >= 0, "finding a video");
    AVPacket **packets = malloc(room * sizeof *packets), *packet = av_packet_alloc();
    while (av_read_frame(file, packet) >= 0) {
        if (packet->stream_index != stream) {
            av_packet_unref(packet);
            continue;
        }
        if (n == room) packets = realloc(packets, (room *= 2) * sizeof *packets);
        packets[n++] = packet;
        packet = av_packet_alloc();
    }
    int64_t *times = malloc(n * sizeof *times), *targets = malloc(argc * sizeof *targets);
    for (int i = 0; i < n; i++) times[i] = packets[i]->pts;
    qsort(times, n, sizeof *times, compare);
    int wanted = 0, out = 0;
    for (int i = 2; i < argc; i++) {
        int64_t at = atoll(argv[i]);
        need(at >= 0 && at < n, "finding a frame");
        if (wanted == 0 || targets[wanted - 1] != times[at]) targets[wanted++] = times[at];
    }
    AVCodecContext *decoder = avcodec_alloc_context3(codec);
    avcodec_parameters_to_context(decoder, file->streams[stream]->codecpar);
    decoder->thread_count = 1;
    decoder->pkt_timebase = file->streams[stream]->time_base;
    need(avcodec_open2(decoder, codec, NULL) == 0, "opening the decoder");
    AVFrame *frame = av_frame_alloc();
    /* One run per key frame: its packets up to the next key frame. It is decoded up to the last target in it. */
    for (int start = 0, next; start < n; start = next) {
        int last = -1;
        for (next = start; next < n && (next == start || !(packets[next]->flags & AV_PKT_FLAG_KEY)); next++)
            if (is_in(targets, wanted, packets[next]->pts)) last = next;
        if (last < 0) continue;
        for (int i = start; i <= last + 1; i++) {
            if (i <= last) decoder->skip_frame = is_in(targets, wanted, packets[i]->pts) ? AVDISCARD_DEFAULT : AVDISCARD_NONREF;
            avcodec_send_packet(decoder, i <= last ? packets[i] : NULL);
            while (avcodec_receive_frame(decoder, frame) == 0) out += is_in(targets, wanted, frame->pts);
        }
        avcodec_flush_buffers(decoder);
    }
    printf("%d of %d frames\n", out, wanted);
    return out != wanted;
}
