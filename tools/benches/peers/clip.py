"""A short video for benchmarks, written without FFmpeg: JPEG images in an AVI file."""
import io
import struct

WIDTH, HEIGHT, RATE, SECONDS = 640, 360, 25, 4


def write_clip(path, seed):
    """Writes a video of 640 x 360 pixels, 25 frames/s and 4 s: a pattern that depends on the seed and moves."""
    import numpy
    from PIL import Image
    random = numpy.random.default_rng(seed)
    coarse = random.integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=numpy.uint8)
    image = numpy.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    frames = []
    for i in range(RATE * SECONDS):
        jpeg = io.BytesIO()
        Image.fromarray(numpy.roll(image, 3 * i, axis=1)).save(jpeg, "JPEG", quality=85)
        frames.append(jpeg.getvalue())
    with open(path, "wb") as f:
        f.write(avi(frames))


def chunk(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def avi(frames):
    """The bytes of an AVI file (RIFF: headers, frames, index) with these JPEG images."""
    largest = max(map(len, frames))
    main = struct.pack("<14I", 1000000 // RATE, largest * RATE, 0, 0x10, len(frames), 0, 1, largest, WIDTH, HEIGHT, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack("<IHHIIIIIIII4H", 0, 0, 0, 0, 1, RATE, 0, len(frames), largest, 0xFFFFFFFF, 0, 0, 0, WIDTH, HEIGHT)
    image_format = struct.pack("<IiiHH4sIiiII", 40, WIDTH, HEIGHT, 1, 24, b"MJPG", 3 * WIDTH * HEIGHT, 0, 0, 0, 0)
    streams = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", image_format))
    headers = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + streams)
    movie, index = b"movi", b""
    for frame in frames:
        index += b"00dc" + struct.pack("<3I", 0x10, len(movie), len(frame))
        movie += chunk(b"00dc", frame)
    return chunk(b"RIFF", b"AVI " + headers + chunk(b"LIST", movie) + chunk(b"idx1", index))
