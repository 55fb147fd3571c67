//! Which requests decode their media when, so that heavy media hold up no light ones.
//!
//! ```text
//! images of few pixels by their headers (data: URIs)    a light turn; one for each encoder
//! images of very many pixels                            a slow turn and a turn, as below
//! all others                                            a turn; one for each encoder, at least 2
//!     after 2 s of decoding                             also a slow turn, if one is free: half as many as turns
//!                                                       else the decoding ends, and begins again in a slow turn
//! the client has left                                   the decoding ends: between images, or by ending the worker
//! ```
//! A turn begins with a queue: a request that waits for its turn and whose client leaves is out of the queue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reel_input::media::image;
use reel_input::media::worker::DecodeControl;
use reel_support::diagnostic::Diagnostic;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::block_in_place;

use super::REQUEST_LOCATION;
use crate::error::{Error, Kind, MediaFailure};

/// A request whose images have at most this many pixels by their headers gets a light turn (a photo of 16 megapixels).
const LIGHT_PIXELS: u64 = 1 << 24;
/// A request whose images have more pixels than this waits for a slow turn at once.
const SLOW_PIXELS: u64 = 1 << 26;
/// Maximum number of images whose headers are read. A request with more is not light.
const MAX_LIGHT_IMAGES: usize = 64;
/// The time after which decoding needs a slow turn.
const QUICK_TIME: Duration = Duration::from_secs(2);
/// Maximum number of pixels of all images of a request: 768 frames of 3840 x 2160, or 48 of the largest images.
const MAX_REQUEST_PIXELS: u64 = 1 << 33;

/// The turns of all requests with media.
#[derive(Debug)]
pub(crate) struct MediaTurns {
    light: Arc<Semaphore>,
    all: Arc<Semaphore>,
    slow: Arc<Semaphore>,
}

impl MediaTurns {
    /// Creates the turns for this many encoders.
    pub(crate) fn new(encoders: usize) -> Self {
        let (turns, semaphore) = (encoders.max(2), |permits| Arc::new(Semaphore::new(permits)));
        Self { light: semaphore(encoders), all: semaphore(turns), slow: semaphore(turns / 2) }
    }

    /// Maximum number of requests whose media are decoded at the same time.
    pub(crate) fn max_decoding(encoders: usize) -> usize {
        encoders + encoders.max(2)
    }

    /// Waits for the first turn of a request with these messages.
    pub(crate) async fn first_turn(&self, messages: &Value) -> MediaTurn {
        // Reading the headers of many images on an async thread would delay other answers.
        match block_in_place(|| header_pixels(messages)) {
            Some(0..=LIGHT_PIXELS) => MediaTurn::new(permit(&self.light).await),
            Some(pixels) if pixels > SLOW_PIXELS => self.slow_turn().await,
            _ => MediaTurn { slow: Some(self.slow.clone()), ..MediaTurn::new(permit(&self.all).await) },
        }
    }

    /// Waits for the turn of a request whose decoding has ended because it was slow.
    pub(crate) async fn slow_turn(&self) -> MediaTurn {
        let slow = permit(&self.slow).await;
        MediaTurn { slow_permit: Mutex::new(slow), ..MediaTurn::new(permit(&self.all).await) }
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // Waiting for a permit cannot fail, because these semaphores are never closed.
    semaphore.clone().acquire_owned().await.ok()
}

/// The number of pixels of all images of these messages by their headers, if they have no other media.
fn header_pixels(messages: &Value) -> Option<u64> {
    let parts = messages.as_array().into_iter().flatten().filter_map(|message| message["content"].as_array());
    let mut left = MAX_LIGHT_IMAGES;
    parts.flatten().map(|part| part_pixels(part, &mut left)).sum()
}

/// The number of pixels of a part of a message, by the headers of its images. `None` if it is not known, as for videos,
/// paths and addresses. `left` counts down the images whose headers are read.
fn part_pixels(part: &Value, left: &mut usize) -> Option<u64> {
    let is_video = ["video", "video_url"].iter().any(|key| part.get(key).is_some_and(|value| !value.is_array()));
    let keys = part.as_object().filter(|_| !is_video)?;
    let media = ["image", "image_url", "url", "path", "video", "video_url"].iter().filter_map(|key| keys.get(*key));
    media.map(|value| image_pixels(value, left)).sum()
}

fn image_pixels(value: &Value, left: &mut usize) -> Option<u64> {
    match value {
        Value::String(uri) => {
            *left = left.checked_sub(1)?;
            image::pixels_of_data_uri(uri).map(|pixels| pixels.min(SLOW_PIXELS + 1))
        }
        Value::Array(frames) => frames.iter().map(|frame| image_pixels(frame, left)).sum(),
        Value::Object(object) => image_pixels(object.get("url")?, left),
        Value::Null => Some(0),
        _ => None,
    }
}

/// The turn of one request, which ends when the value is dropped.
#[derive(Debug)]
pub(crate) struct MediaTurn {
    _permit: Option<OwnedSemaphorePermit>,
    /// The slow turns, if this turn is limited to [`QUICK_TIME`] without one of them.
    slow: Option<Arc<Semaphore>>,
    slow_permit: Mutex<Option<OwnedSemaphorePermit>>,
    begun: Mutex<Option<Instant>>,
    decoded_pixels: AtomicU64,
    is_client_gone: AtomicBool,
    is_too_slow: AtomicBool,
}

impl MediaTurn {
    fn new(permit: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            _permit: permit,
            slow: None,
            slow_permit: Mutex::new(None),
            begun: Mutex::new(None),
            decoded_pixels: AtomicU64::new(0),
            is_client_gone: AtomicBool::new(false),
            is_too_slow: AtomicBool::new(false),
        }
    }

    /// Whether the decoding has ended because it was slow and there was no slow turn.
    pub(crate) fn needs_slow_turn(&self) -> bool {
        self.is_too_slow.load(Ordering::SeqCst)
    }

    /// Whether the decoding may go on after its time of [`QUICK_TIME`].
    fn has_time(&self) -> bool {
        let Some(slow) = &self.slow else { return true };
        let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        let mut permit = self.slow_permit.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.elapsed() < QUICK_TIME || permit.is_some() {
            return true;
        }
        *permit = slow.clone().try_acquire_owned().ok();
        permit.is_some()
    }
}

impl DecodeControl for MediaTurn {
    fn check(&self, decoded_pixels: u64) -> Result<(), Error> {
        let stopped = |what: &str| {
            Kind::Media(MediaFailure::Stopped).error(Diagnostic::new(REQUEST_LOCATION, what, "send the request again"))
        };
        if self.is_client_gone.load(Ordering::SeqCst) {
            return Err(stopped("is not decoded further, because its client has left"));
        }
        let before = self.decoded_pixels.fetch_add(decoded_pixels, Ordering::Relaxed);
        if before.saturating_add(decoded_pixels) > MAX_REQUEST_PIXELS {
            let what = format!("reaches more than {MAX_REQUEST_PIXELS} pixels in all images of the request");
            return Err(Error::setting("image", what, "send fewer or smaller images"));
        }
        if !self.has_time() {
            self.is_too_slow.store(true, Ordering::SeqCst);
            return Err(stopped("is decoded later, because other requests with slow media are decoded now"));
        }
        Ok(())
    }
}

/// Ends the decoding of a turn when it is dropped: its client has left.
pub(crate) struct EndsWithClient(pub(crate) Arc<MediaTurn>);

impl Drop for EndsWithClient {
    fn drop(&mut self) {
        self.0.is_client_gone.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    /// The data: URI of a file that is only the header of a PNG of this size.
    fn png(width: u32, height: u32) -> String {
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        let head = [&b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], &size, &[8, 2, 0, 0, 0]].concat();
        let mut crc = !0u32;
        for byte in &head[12..] {
            crc ^= u32::from(*byte);
            (0..8).for_each(|_| crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
        }
        let end = [&(!crc).to_be_bytes()[..], &[0, 0, 0, 0], b"IDAT", &[0; 4]].concat();
        format!("data:image/png;base64,{}", STANDARD.encode([head, end].concat()))
    }

    #[test]
    fn small_images_are_light_by_their_headers() {
        let pixels =
            |part: Value| header_pixels(&json!([{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]));
        let of = |part: Value| pixels(part).is_some_and(|pixels| pixels <= LIGHT_PIXELS);
        let very_large = json!({"type": "image", "image": png(10_000, 10_000)});
        assert!(pixels(very_large).is_some_and(|pixels| pixels > SLOW_PIXELS));
        let (small, large) = (png(4096, 4096), png(4097, 4096));
        for light in
            [json!({"type": "image_url", "image_url": {"url": small}}), json!({"type": "image", "image": small})]
        {
            assert!(of(light.clone()), "{light}");
        }
        assert!(of(json!({"type": "video", "video": [png(1000, 1000), png(1000, 1000)]})));
        for heavy in [
            json!({"type": "image_url", "image_url": {"url": large}}),
            json!({"type": "video", "video": [small, png(1, 1)]}),
            json!({"type": "video", "video": vec![png(1, 1); 65]}),
            json!({"type": "video", "video": png(8, 8)}),
            json!({"type": "video_url", "video_url": {"url": png(8, 8)}}),
            json!({"type": "image_url", "image_url": {"url": "a.png"}}),
            json!({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}),
            json!({"type": "image", "image": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="}),
            json!({"type": "image", "image": 1}),
        ] {
            assert!(!of(heavy.clone()), "{heavy}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn slow_requests_take_at_most_half_of_the_turns() {
        let turns = MediaTurns::new(4);
        let heavy = json!([{"content": [{"type": "video", "video": "a.mp4"}]}]);
        let slow_one = async || {
            let turn = turns.first_turn(&heavy).await;
            assert!(turn.check(0).is_ok());
            // The turn began long ago.
            *turn.begun.lock().unwrap() = Instant::now().checked_sub(QUICK_TIME);
            turn
        };
        let held = [slow_one().await, slow_one().await, slow_one().await];
        assert!(held[0].check(0).is_ok() && held[1].check(0).is_ok() && !held[1].needs_slow_turn());
        assert!(held[2].check(0).is_err() && held[2].needs_slow_turn());
        let [first, second, third] = held;
        drop((first, third));
        let again = turns.slow_turn().await;
        assert!(again.check(0).is_ok() && second.check(0).is_ok());
        assert!(turns.slow.try_acquire().is_err());
    }

    #[test]
    fn decoding_ends_with_the_client_and_at_a_number_of_pixels() {
        let turn = Arc::new(MediaTurn::new(None));
        assert!(turn.check(MAX_REQUEST_PIXELS).is_ok());
        assert!(turn.check(1).unwrap_err().to_string().contains("8589934592 pixels"));
        drop(EndsWithClient(turn.clone()));
        assert!(matches!(turn.check(0), Err(e) if e.kind == Kind::Media(MediaFailure::Stopped)));
    }
}
