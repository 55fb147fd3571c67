use super::*;

fn descriptor(m: u32, n: u32, d: u32, a: u32, b: u32) -> u32 {
    d << 4 | a << 7 | b << 10 | (n / 8) << 17 | (m / 16) << 24
}

#[test]
fn instruction_descriptors_are_decoded_or_refused_by_field() {
    let shape = MmaShape::decode(MmaKind::F16, 2, descriptor(256, 224, 1, 1, 1) | 1 << 13 | 1 << 16).unwrap();
    assert_eq!((shape.m, shape.n, shape.rows(), shape.k()), (256, 224, 128, 16));
    assert!(shape.negate && shape.transpose_b && !shape.transpose_a);
    let refused = |kind, blocks, bits| MmaShape::decode(kind, blocks, bits).unwrap_err().to_string();
    let invalid = |kind, blocks, bits, what| assert!(refused(kind, blocks, bits).contains(what), "{bits:#x}");
    invalid(MmaKind::F16, 1, descriptor(128, 72, 1, 1, 1), "M = 128 and N = 72");
    invalid(MmaKind::F16, 1, descriptor(256, 64, 1, 1, 1), "cta_group::1");
    invalid(MmaKind::F16, 2, descriptor(64, 64, 1, 1, 1), "cta_group::2");
    invalid(MmaKind::F16, 1, descriptor(64, 64, 2, 1, 1), "format 2 of D");
    invalid(MmaKind::Tf32, 1, descriptor(64, 64, 1, 1, 2), "element format 1");
    invalid(MmaKind::F8F6F4, 1, descriptor(64, 64, 1, 5, 0), "4 or 6 bits: not supported");
    invalid(MmaKind::F16, 1, descriptor(64, 64, 1, 1, 1) | 1 << 2, "sparse A: not supported");
    invalid(MmaKind::Tf32, 1, descriptor(64, 64, 1, 2, 2) | 1 << 15, "not supported");
    invalid(MmaKind::F16, 1, descriptor(64, 64, 1, 1, 1) | 1 << 23, "reserved");
}

/// The elements of D of each block are in different words, which the region of D contains.
#[test]
fn every_element_of_d_has_a_word_of_its_own() {
    for (blocks, m, n, lane) in [(1, 64, 8, 0), (1, 64, 40, 16), (1, 128, 16, 0), (2, 128, 48, 0), (2, 256, 32, 0)] {
        let shape = MmaShape::decode(MmaKind::F16, blocks, descriptor(m, n, 1, 1, 1)).unwrap();
        let address = lane << 16 | 32;
        let (groups, columns) = shape.region_of_d(address);
        let mut seen = std::collections::HashSet::new();
        for row in 0..shape.rows() as usize {
            for column in 0..n as usize {
                let (lane, at) = shape.position_in_d(address, row, column);
                assert!(groups >> (lane / GROUP_LANES) & 1 != 0 && columns.contains(&(32 + at as u32)));
                assert!(seen.insert((lane, at)));
            }
        }
        assert_eq!(seen.len(), groups.count_ones() as usize * GROUP_LANES * columns.len());
    }
}
