//! Large arrays for measurements, on large pages if the system has them. On pages of 4 KiB the page faults of 256 MiB
//! take longer than many measurements, and reads wait for address translations.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// An array of bytes in a memory mapping of its own; all bytes are 0 at first.
pub struct LargeArray(MmapMut);

impl LargeArray {
    /// Allocates an array of `bytes` bytes, at least 1.
    ///
    /// # Errors
    /// The system has too little memory.
    pub fn zeroed(bytes: usize) -> io::Result<LargeArray> {
        let map = MmapMut::map_anon(bytes)?;
        // Systems without large pages refuse this advice; the array then has small pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(LargeArray(map))
    }
}

impl Deref for LargeArray {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for LargeArray {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_written() {
        let mut array = LargeArray::zeroed((4 << 20) + 3).expect("there is memory for 4 MiB");
        assert!(array.iter().all(|byte| *byte == 0));
        array.fill(7);
        assert_eq!((array.len(), array[array.len() - 1]), ((4 << 20) + 3, 7));
    }
}
