//! The SigLIP reward model: computes cosine similarities of texts and frames. Each frame is encoded once, regardless of
//! how many completions are compared with the frame, and recent embeddings are cached for later calls.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reel_device::{DType, Device};
use reel_input::media::frames::{FrameBuf, FrameView};
use reel_input::media::image::{self, ExifOrientation};
use reel_model::siglip::Siglip;
use reel_samples::rewards::SemanticModel;
use twox_hash::XxHash3_128;

use crate::error::{Error, Kind, Result};

/// Maximum number of frame embeddings in the cache: enough for 1024 videos of 16 frames. An embedding of the model
/// so400m takes 4.5 KiB, so the cache takes at most 72 MiB.
const MAX_CACHED_FRAMES: usize = 16 * 1024;

/// A frame embedding, shared between the cache and callers.
type FrameEmbedding = Arc<[f32]>;

/// A SigLIP model with a cache of frame embeddings.
#[derive(Debug)]
pub struct SiglipScorer {
    model: Siglip,
    cache: Cache,
    encoded: u64,
}

/// A frame: its RGB bytes in the layout `[height, width, 3]`.
struct Frame<'a> {
    data: Cow<'a, [u8]>,
    height: usize,
    width: usize,
}

impl SiglipScorer {
    /// Loads a SigLIP model folder. The model computes in `dtype`.
    ///
    /// # Errors
    /// The folder lacks files, or its weights do not fit its config.
    pub fn open(device: &Device, folder: &Path, dtype: DType) -> Result<Self, Error> {
        Ok(Self::new(Siglip::open(device, folder, dtype)?))
    }

    /// A scorer with an empty cache.
    pub fn new(model: Siglip) -> Self {
        Self { model, cache: Cache::default(), encoded: 0 }
    }

    /// Computes cosine similarities between texts and frames: returns one list per text, with one value per frame of
    /// all `frames` in order. If `negative` is true, every byte v of a frame is replaced by `(256 - v) % 256`, as in
    /// VideoRFT's code.
    ///
    /// # Errors
    /// The data of a frame has the wrong size, an embedding is NaN, or the device fails.
    pub fn similarities_of(
        &mut self,
        texts: &[&str],
        frames: &[FrameBuf],
        negative: bool,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let views = frames.iter().map(FrameBuf::view).collect::<Result<Vec<_>, _>>()?;
        let frames = views.iter().flat_map(|view| {
            let (height, width) = view.height_and_width();
            view.iter().map(move |data| Ok(Frame { data: data.into(), height, width }))
        });
        self.similarities_with(texts, frames, negative)
    }

    /// Number of frames that were encoded so far.
    pub fn frames_encoded(&self) -> u64 {
        self.encoded
    }

    fn similarities_with<'a>(
        &mut self,
        texts: &[&str],
        frames: impl Iterator<Item = Result<Frame<'a>, Error>>,
        negative: bool,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let pictures = self.embed(frames, negative)?;
        let texts = self.model.embed_texts(texts)?;
        Ok(texts.iter().map(|text| pictures.iter().map(|picture| product(text, picture)).collect()).collect())
    }

    /// Returns the embedding of each frame. Frames that are not in the cache are encoded in small batches.
    fn embed<'a>(
        &mut self,
        frames: impl Iterator<Item = Result<Frame<'a>, Error>>,
        negative: bool,
    ) -> Result<Vec<FrameEmbedding>, Error> {
        let at_once = self.model.images_per_pass();
        let (mut keys, mut known) = (Vec::new(), HashMap::new());
        let mut waiting: Vec<(u128, Frame)> = Vec::new();
        for frame in frames {
            let frame = frame?;
            let key = frame.key(negative);
            keys.push(key);
            if known.contains_key(&key) || waiting.iter().any(|(other, _)| *other == key) {
                continue;
            }
            if let Some(vector) = self.cache.get(key) {
                known.insert(key, vector);
                continue;
            }
            waiting.push((key, frame));
            if waiting.len() == at_once {
                self.encode(&mut waiting, negative, &mut known)?;
            }
        }
        self.encode(&mut waiting, negative, &mut known)?;
        Ok(keys.iter().map(|key| known[key].clone()).collect())
    }

    fn encode(
        &mut self,
        waiting: &mut Vec<(u128, Frame)>,
        negative: bool,
        known: &mut HashMap<u128, FrameEmbedding>,
    ) -> Result<(), Error> {
        let views = waiting.iter().map(|(_, frame)| frame.view()).collect::<Result<Vec<_>, _>>()?;
        let vectors = self.model.embed_frames(&views, negative)?;
        self.encoded += vectors.len() as u64;
        for ((key, _), vector) in waiting.drain(..).zip(vectors) {
            let vector = FrameEmbedding::from(vector);
            self.cache.put(key, vector.clone());
            known.insert(key, vector);
        }
        Ok(())
    }
}

/// Compares texts with image files, which are opened one by one.
impl SemanticModel for SiglipScorer {
    fn similarities(
        &mut self,
        texts: &[&str],
        frames: &[PathBuf],
        negative: bool,
    ) -> reel_samples::Result<Vec<Vec<f32>>> {
        let frames = frames.iter().map(|path| {
            let picture = image::open(path, ExifOrientation::Apply)?;
            Ok(Frame { data: picture.data.into(), height: picture.height, width: picture.width })
        });
        self.similarities_with(texts, frames, negative).map_err(|e| Error { kind: Kind::SemanticReward, ..e })
    }
}

impl Frame<'_> {
    /// The cache key of a frame: the 128-bit XXH3 hash of its bytes, with its size and `negative` in the seed. Two
    /// different frames have the same key only with negligible probability.
    fn key(&self, negative: bool) -> u128 {
        let preview = [self.height as u64, self.width as u64, negative as u64].map(u64::to_le_bytes).concat();
        let seed = twox_hash::XxHash3_64::oneshot(&preview);
        XxHash3_128::oneshot_with_seed(seed, &self.data)
    }

    fn view(&self) -> Result<FrameView<'_>, Error> {
        FrameView::new(&self.data, 1, self.height, self.width)
    }
}

fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Cache of frame embeddings by cache key. When it is full, the oldest embedding is dropped first.
#[derive(Debug, Default)]
struct Cache {
    vectors: HashMap<u128, FrameEmbedding>,
    order: VecDeque<u128>,
}

impl Cache {
    fn get(&self, key: u128) -> Option<FrameEmbedding> {
        self.vectors.get(&key).cloned()
    }

    /// Adds an embedding whose key is not in the cache.
    fn put(&mut self, key: u128, vector: FrameEmbedding) {
        if self.order.len() == MAX_CACHED_FRAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.vectors.remove(&oldest);
        }
        self.order.push_back(key);
        self.vectors.insert(key, vector);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/siglip").join(name)
    }

    fn scorer() -> SiglipScorer {
        SiglipScorer::open(&Device::cpu(2), &golden("model"), DType::F32).unwrap()
    }

    /// Returns a video of random-looking frames that all differ.
    fn test_video(frames: usize, height: usize, width: usize, seed: usize) -> FrameBuf {
        let level = |i: usize| ((i + seed * 7_919).wrapping_mul(2_654_435_761) >> 13) as u8;
        FrameBuf { data: Arc::new((0..frames * height * width * 3).map(level).collect()), frames, height, width }
    }

    #[test]
    fn eight_completions_encode_each_frame_once() {
        let mut scorer = scorer();
        let texts: Vec<String> = (0..8).map(|i| format!("a red ball rolls {}", "slowly ".repeat(i))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let videos = [test_video(16, 40, 60, 0)];
        let first = scorer.similarities_of(&texts, &videos, false).unwrap();
        assert_eq!((first.len(), first[0].len(), scorer.frames_encoded()), (8, 16, 16));
        assert!(first.iter().flatten().all(|cos| (-1.0..=1.0).contains(cos)));
        assert!(first[0].windows(2).any(|w| w[0] != w[1]) && first[0] != first[7]);
        // Passes the first video's frames in another order, and two new frames: only the new frames are encoded.
        let mut shuffled = videos[0].clone();
        let frame = 40 * 60 * 3;
        shuffled.data.rotate_left(5 * frame);
        let again = scorer.similarities_of(&texts[..1], &[shuffled, test_video(2, 30, 30, 9)], false).unwrap();
        assert_eq!(scorer.frames_encoded(), 18);
        assert_eq!(again[0][..11], first[0][5..]);
        assert_eq!(again[0][11..16], first[0][..5]);
        // Negated frames and frames of another size are not found in the cache.
        let negative = scorer.similarities_of(&texts[..1], &videos, true).unwrap();
        assert!(negative[0] != first[0]);
        let turned = FrameBuf { height: 60, width: 40, ..videos[0].clone() };
        scorer.similarities_of(&texts[..1], &[turned], false).unwrap();
        assert_eq!(scorer.frames_encoded(), 18 + 16 + 16);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn cache_and_batching_change_no_bit(picks in prop::collection::vec(0usize..6, 1..12), negative in any::<bool>()) {
            let frames: Vec<FrameBuf> = picks.iter().map(|&i| test_video(1, 20 + i, 30, i)).collect();
            let texts = ["a ball", "the dog's bowl"];
            let mut together = scorer();
            let got = together.similarities_of(&texts, &frames, negative).unwrap();
            let mut distinct = picks.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(together.frames_encoded(), distinct.len() as u64);
            for (n, frame) in frames.iter().enumerate() {
                let alone = scorer().similarities_of(&texts, std::slice::from_ref(frame), negative).unwrap();
                prop_assert_eq!(&[got[0][n], got[1][n]], &[alone[0][0], alone[1][0]]);
            }
        }
    }

    #[test]
    fn image_files_give_the_similarities_of_their_pixels() {
        let files: Vec<PathBuf> =
            ["v0_0", "v0_1", "v1_0", "v0_0"].iter().map(|f| golden(&format!("frames/{f}.png"))).collect();
        let frames: Vec<FrameBuf> = files
            .iter()
            .map(|file| image::open(file, ExifOrientation::Apply).unwrap())
            .map(|p| FrameBuf { data: p.data.into(), frames: 1, height: p.height, width: p.width })
            .collect();
        let mut of_files = scorer();
        let want = scorer().similarities_of(&["a ball"], &frames, true).unwrap();
        assert_eq!(of_files.similarities(&["a ball"], &files, true).unwrap(), want);
        assert_eq!((of_files.frames_encoded(), want[0][0]), (3, want[0][3]));
        let missing = of_files.similarities(&["a"], &[golden("frames/none.png")], false).unwrap_err().to_string();
        assert!(missing.contains("none.png") && missing.contains("; ") && !missing.contains('\n'), "{missing}");
        let empty = FrameBuf { data: Vec::new().into(), frames: 0, height: 2, width: 2 };
        assert!(of_files.similarities_of(&["a"], &[empty], false).unwrap_err().to_string().starts_with("frames: "));
        assert!(of_files.similarities_of(&[], &frames, false).unwrap().is_empty());
        assert_eq!(of_files.similarities_of(&["a"], &[], false).unwrap(), [[0f32; 0]]);
    }

    #[test]
    fn cache_drops_the_oldest_embedding() {
        let mut cache = Cache::default();
        for key in 0..MAX_CACHED_FRAMES as u128 + 3 {
            cache.put(key, FrameEmbedding::from([key as f32]));
        }
        assert_eq!((cache.vectors.len(), cache.order.len()), (MAX_CACHED_FRAMES, MAX_CACHED_FRAMES));
        assert!(cache.get(2).is_none() && cache.get(3).is_some() && cache.get(MAX_CACHED_FRAMES as u128 + 2).is_some());
    }
}
