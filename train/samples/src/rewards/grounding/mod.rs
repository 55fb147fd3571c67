//! Answers that name times and places of a video: how they are read, and how they are compared with the truth.
//!
//! ```text
//! text of an answer -> answer_json -> times -> temporal IoU
//!                                  -> boxes -> box IoU; boxes by frame -> tracking IoU
//! ```
//! All functions are pure. No text makes them fail or panic: what cannot be read is `None`. Comments name the
//! repositories whose rule is taken: OneThinker (github.com/tulerfeng/OneThinker, 768b20f), EasyVideoR1
//! (github.com/cyuQ1n/EasyVideoR1, 7ab338b), VideoChat-R1 (github.com/OpenGVLab/VideoChat-R1, 73b2ea9).

mod answer_json;
mod boxes;
mod times;

pub use answer_json::json_in;
pub use boxes::{BoundingBox, BoxesByFrame, box_in, box_iou, boxes_by_frame, common_frames_iou, numbers, tracking_iou};
pub use times::{Segment, segments_in, segments_of, temporal_iou};
