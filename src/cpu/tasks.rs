//! Work in parallel without locks on the results: every task owns a block of the output.

use std::ops::Range;

/// Calls `task(k, block)` for every `k` in `blocks` with elements `bound(k)..bound(k + 1)` of
/// the whole, of which `data` starts at `bound(blocks.start)`. Blocks may be empty.
pub(crate) fn for_blocks<T: Send>(
    data: &mut [T],
    blocks: Range<usize>,
    bound: &(impl Fn(usize) -> usize + Sync),
    task: &(impl Fn(usize, &mut [T]) + Sync),
) {
    for_block_pairs(data, &mut [(); 0], blocks, bound, &|_| 0, &|k, block, _| task(k, block));
}

/// As [`for_blocks`], over two outputs that are cut at bounds of their own.
pub(crate) fn for_block_pairs<A: Send, B: Send>(
    a: &mut [A],
    b: &mut [B],
    blocks: Range<usize>,
    a_bound: &(impl Fn(usize) -> usize + Sync),
    b_bound: &(impl Fn(usize) -> usize + Sync),
    task: &(impl Fn(usize, &mut [A], &mut [B]) + Sync),
) {
    match blocks.len() {
        0 => {}
        1 => {
            let k = blocks.start;
            let a_len = a_bound(k + 1) - a_bound(k);
            let b_len = b_bound(k + 1) - b_bound(k);
            task(k, &mut a[..a_len], &mut b[..b_len]);
        }
        count => {
            let middle = blocks.start + count / 2;
            let (a0, a1) = a.split_at_mut(a_bound(middle) - a_bound(blocks.start));
            let (b0, b1) = b.split_at_mut(b_bound(middle) - b_bound(blocks.start));
            rayon::join(
                || for_block_pairs(a0, b0, blocks.start..middle, a_bound, b_bound, task),
                || for_block_pairs(a1, b1, middle..blocks.end, a_bound, b_bound, task),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_goes_to_its_task_once() {
        let bounds = [0, 3, 3, 4, 9, 10];
        let (mut a, mut b) = (vec![0; 10], vec![0; 5]);
        for_block_pairs(&mut a, &mut b, 0..5, &|k| bounds[k], &|k| k, &|k, a, b| {
            a.iter_mut().for_each(|a| *a += k + 1);
            b[0] += a.len();
        });
        assert_eq!(a, [1, 1, 1, 3, 4, 4, 4, 4, 4, 5]);
        assert_eq!(b, [3, 0, 1, 5, 1]);
    }
}
