//! Draws the frames of a clip: antialiased shapes on a dark background.

use super::{BACKGROUND, CLIP_SIDE};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ShapeKind {
    Square,
    Circle,
    Triangle,
}

/// A shape at its position in one frame; lengths are in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) kind: ShapeKind,
    pub(super) center: [f32; 2],
    pub(super) radius: f32,
    pub(super) color: [f32; 3],
}

/// Draws the frames of a clip, u8 RGB. A frame that equals the previous frame is copied.
pub(super) fn render_frames(scenes: &[Vec<Shape>]) -> Vec<u8> {
    let mut frames: Vec<u8> = Vec::with_capacity(scenes.len() * CLIP_SIDE * CLIP_SIDE * 3);
    for (t, scene) in scenes.iter().enumerate() {
        if t > 0 && scene == &scenes[t - 1] {
            frames.extend_from_within(frames.len() - CLIP_SIDE * CLIP_SIDE * 3..);
        } else {
            frames.extend(render_frame(scene));
        }
    }
    frames
}

/// Draws one frame, u8 RGB `[CLIP_SIDE, CLIP_SIDE, 3]`, with antialiased edges one pixel wide.
fn render_frame(shapes: &[Shape]) -> Vec<u8> {
    let mut pixels = rounded(BACKGROUND).repeat(CLIP_SIDE * CLIP_SIDE);
    for y in 0..CLIP_SIDE {
        let center_y = y as f32 + 0.5;
        let in_row: Vec<&Shape> = shapes.iter().filter(|s| reaches(s, s.center[1], center_y)).collect();
        for x in 0..CLIP_SIDE {
            let center_x = x as f32 + 0.5;
            let mut here = in_row.iter().filter(|s| reaches(s, s.center[0], center_x)).peekable();
            if here.peek().is_some() {
                let rgb = here.fold(BACKGROUND, |rgb, s| blend(rgb, s, center_x, center_y));
                pixels[3 * (y * CLIP_SIDE + x)..][..3].copy_from_slice(&rounded(rgb));
            }
        }
    }
    pixels
}

/// Returns false if a shape is too far from a pixel along one axis to change the pixel. `center` and `pixel` are the
/// coordinates of the shape's and of the pixel's center on this axis. A shape's edge is at most `radius` away from the
/// shape's center. Antialiasing extends the shape beyond its edge by 0.5 pixels, at the top of a triangle by 0.5 √5 =
/// 1.12 pixels.
fn reaches(s: &Shape, center: f32, pixel: f32) -> bool {
    (pixel - center).abs() <= s.radius + 1.2
}

/// Returns the color of the pixel with center (x, y) after a shape is drawn over it; `rgb` is the pixel's color before.
fn blend(mut rgb: [f32; 3], s: &Shape, x: f32, y: f32) -> [f32; 3] {
    let inside = (0.5 - distance(s, x, y)).clamp(0.0, 1.0);
    for (c, want) in rgb.iter_mut().zip(s.color) {
        *c += (want - *c) * inside;
    }
    rgb
}

fn rounded(rgb: [f32; 3]) -> [u8; 3] {
    rgb.map(|c| c.round() as u8)
}

/// Signed distance of a point from the edge of a shape, in pixels; negative inside.
fn distance(s: &Shape, x: f32, y: f32) -> f32 {
    let (dx, dy) = (x - s.center[0], y - s.center[1]);
    match s.kind {
        ShapeKind::Square => dx.abs().max(dy.abs()) - 0.9 * s.radius,
        ShapeKind::Circle => dx.hypot(dy) - s.radius,
        // The triangle stands upright, and its sides have slope 2.
        ShapeKind::Triangle => ((2.0 * dx.abs() - dy - s.radius) / 5f32.sqrt()).max(dy - s.radius),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ClipRandom;
    use super::*;

    #[test]
    fn skipping_shapes_that_are_far_from_a_pixel_changes_no_byte() {
        let mut random = ClipRandom { seed: 1, stream: 2, index: 0 };
        for _ in 0..12 {
            let shapes: Vec<Shape> = (0..4)
                .map(|_| Shape {
                    kind: random.kind(),
                    center: [0; 2].map(|_| random.between(-20.0, CLIP_SIDE as f32 + 20.0)),
                    radius: random.between(0.5, 60.0),
                    color: [0; 3].map(|_| random.between(0.0, 255.0)),
                })
                .collect();
            let drawn = render_frame(&shapes);
            for (i, pixel) in drawn.chunks_exact(3).enumerate() {
                let (x, y) = ((i % CLIP_SIDE) as f32 + 0.5, (i / CLIP_SIDE) as f32 + 0.5);
                assert_eq!(pixel, rounded(shapes.iter().fold(BACKGROUND, |rgb, s| blend(rgb, s, x, y))), "pixel {i}");
            }
        }
    }
}
