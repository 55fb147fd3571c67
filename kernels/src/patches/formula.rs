//! The definition of patches, element by element, for frames `[count, height, width, 3]`. The shape is (frames,
//! height, width, patch, temporal, merge).

/// Returns two values for each element of the patches: the u8 level that it comes from, and its channel.
pub fn patch_levels_and_channels(
    frames: &[u8],
    [count, height, width, patch, temporal, merge]: [usize; 6],
) -> Vec<(u8, usize)> {
    let mut levels = Vec::new();
    let side = patch * merge;
    for time in 0..count.div_ceil(temporal) {
        for (top, left) in (0..height / side).flat_map(|t| (0..width / side).map(move |l| (t * side, l * side))) {
            for (down, right) in (0..merge).flat_map(|d| (0..merge).map(move |r| (d * patch, r * patch))) {
                for (c, f) in (0..3).flat_map(|c| (0..temporal).map(move |f| (c, f))) {
                    for (y, x) in (0..patch).flat_map(|y| (0..patch).map(move |x| (y, x))) {
                        let frame = (time * temporal + f).min(count - 1);
                        let pixel = (frame * height + top + down + y) * width + left + right + x;
                        levels.push((frames[3 * pixel + c], c));
                    }
                }
            }
        }
    }
    levels
}
