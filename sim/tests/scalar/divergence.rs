//! Kernels whose warps diverge and reconverge, compared with results that the tests compute.

use crate::harness::check_every_run;

fn check(name: &str, lanes: usize, expected: impl Fn(u32) -> u32) {
    let expected: Vec<u32> = (0..lanes as u32).map(expected).collect();
    check_every_run("divergence", name, |ran| assert_eq!(ran.buffer_words(0), expected, "{name}"));
}

#[test]
fn nested_loops() {
    check("nested_loops", 96, |i| {
        let mut sum = 0u32;
        for j in 0..i % 7 {
            for k in j..i % 5 + j {
                if (j ^ k ^ i) & 1 != 0 {
                    sum = sum.wrapping_add(j * k + i);
                }
            }
            sum = sum.wrapping_mul(3).wrapping_add(1);
        }
        sum
    });
}

#[test]
fn break_and_continue() {
    check("break_continue", 64, |i| {
        let mut sum = 0u32;
        'next: for j in 0..40 {
            if (i + j) % 3 == 0 {
                continue;
            }
            let mut k = 0;
            loop {
                if k > i % 11 {
                    break;
                }
                k += j % 4 + 1;
                if k == 6 {
                    sum ^= j;
                    continue 'next;
                }
            }
            sum += k;
            if sum > 60 + i {
                break;
            }
            sum ^= j;
        }
        sum
    });
}

#[test]
fn switches() {
    check("switches", 64, |i| {
        let mut v = i;
        for _ in 0..3 {
            v = match v % 9 {
                0 => v.wrapping_mul(5).wrapping_add(3),
                1 => v.wrapping_add(17) ^ 0x55,
                2 => v ^ 0x55,
                3 => v.wrapping_add((0..i % 6).sum()),
                4 => v.rotate_right(1),
                5 => !v,
                7 => v.wrapping_sub(1000),
                _ => v.wrapping_add(2),
            };
        }
        v
    });
}

#[test]
fn early_exit() {
    let left = |i: u32| i >= 77 || i % 4 == 3;
    let s = |i: u32| {
        let steps = if i < 77 && i % 4 == 3 { i % 50 } else { 50 };
        i + if i < 77 { (0..steps).sum::<u32>() } else { 0 }
    };
    check("early_exit", 96, |i| if left(i) { 0 } else { s(i) + s(i & !3) });
}

fn fibonacci(n: u32) -> u32 {
    if n < 2 { n } else { fibonacci(n - 1) + fibonacci(n - 2) }
}

#[test]
fn recursion() {
    check("recursion", 32, |i| fibonacci(i % 10));
}

#[test]
fn function_pointers() {
    let deep = |x: u32| if x & 1 != 0 { 2 * (x + 3) } else { (x + 4) * (x + 4) };
    let call = |n: u32, x: u32| match n {
        0 => 2 * x,
        1 => x * x,
        2 => deep(x),
        _ => fibonacci(x),
    };
    check("function_pointers", 64, |i| call(i % 3, i) + call(i / 3 % 4, i % 8));
}

#[test]
fn divergent_returns() {
    let function = |x: u32, side: &mut u32| {
        if x.is_multiple_of(5) {
            return 1;
        }
        *side += x;
        for k in 0..x {
            if k * k > x {
                return k;
            }
            if x.is_multiple_of(k + 2) {
                *side += 100;
                return x / (k + 2);
            }
        }
        99
    };
    check("divergent_returns", 64, |i| {
        let (mut side, mut sum) = (7, 0u32);
        for k in 0..3 {
            sum = sum.wrapping_mul(7).wrapping_add(function(i + k, &mut side));
        }
        sum.wrapping_add(1000 * side)
    });
}

#[test]
fn divergent_shuffles() {
    let v = |t: u32| {
        if t % 2 == 1 {
            let v = ((t + 2) % 32) | 1;
            if t < 16 { v + ((t ^ 2) + 2) % 32 } else { v }
        } else {
            t + 100 * 8 + 30
        }
    };
    check("divergent_shuffles", 32, |t| v(t) + v(if t == 31 { 31 } else { t + 1 }));
}

#[test]
fn syncwarp_in_branches() {
    check("syncwarp_in_branches", 32, |t| if t < 16 { 2 * (t + 16) } else { t - 16 });
}

#[test]
fn tiles() {
    check("tiles", 64, |t| {
        if t / 8 % 2 == 1 { (0..8).map(|k| t / 8 * 8 + k).sum() } else { (t ^ 7) + u32::from(t / 8 == 2) }
    });
}

#[test]
fn coalesced() {
    check_every_run("divergence", "coalesced", |ran| {
        assert_eq!(ran.buffer_words(0), [22]);
        assert!((2..=22).contains(&ran.buffer_words(1)[0]), "{:?}", ran.buffer_words(1));
    });
}

#[test]
fn token() {
    let expected: Vec<u32> = (0..32).map(|t| 31 - t).collect();
    check_every_run("divergence", "token", |ran| assert_eq!(ran.buffer_words(1), expected));
}

#[test]
fn goto_out() {
    check("goto_out", 64, |i| {
        let mut n = 0;
        for a in 0..6 {
            'outer: for b in 0..6 {
                for c in 0..6 {
                    n += 1;
                    if a * 36 + b * 6 + c == 3 * i {
                        return n;
                    }
                    if (a + b + c + i) % 13 == 12 {
                        break 'outer;
                    }
                }
            }
            n += 1000;
        }
        n
    });
}
