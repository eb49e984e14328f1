//! The rigid placement: one shift a tile from one mean shift a pair, robust against wrong pairs.

use kinesin_stream::geometry::Xy;

use super::sparse::{Local, Normal, Pattern};

/// Largest move of a round after which the weights are left as they are, pixels.
const SETTLED_PX: f64 = 0.05;

/// A pair of tiles (indexes) and how far apart the nominal places put its points: `nominal p - nominal q`, median, pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) tiles: [usize; 2],
    pub(super) gap: Xy<f64>,
}

impl Link {
    /// Distance that the moves leave, pixels.
    pub(super) fn residual(&self, moves: &[Xy<f64>]) -> f64 {
        (self.gap + moves[self.tiles[0]] - moves[self.tiles[1]]).norm()
    }
}

/// The shift of every tile from its nominal place, and which links agree with it to `tolerance`.
///
/// Least absolute deviations by reweighting, then the worst link beyond the tolerance is dropped with all that are nearly as
/// bad, and so on: a wrong link in a mesh loses against the loops it is part of. Tiles without links stay at zero.
pub(super) fn rigid(tiles: usize, links: &[Link], tolerance: f64) -> (Vec<Xy<f64>>, Vec<bool>) {
    let mut kept = vec![true; links.len()];
    let mut moves = vec![Xy::default(); tiles];
    for _ in 0..=links.len() {
        moves = least_deviations(tiles, links, &kept, &moves);
        let off: Vec<f64> = links.iter().zip(&kept).map(|(l, &k)| if k { l.residual(&moves) } else { 0.0 }).collect();
        let worst = off.iter().copied().fold(0.0, f64::max);
        if worst <= tolerance {
            break;
        }
        for (k, off) in kept.iter_mut().zip(&off) {
            *k &= *off <= tolerance.max(0.8 * worst);
        }
    }
    (moves, kept)
}

fn least_deviations(tiles: usize, links: &[Link], kept: &[bool], from: &[Xy<f64>]) -> Vec<Xy<f64>> {
    let mut moves = from.to_vec();
    let mut pattern = Pattern::default();
    for round in 0..15 {
        let mut normal = Normal::new(vec![1; tiles]);
        for (link, _) in links.iter().zip(kept).filter(|(_, k)| **k) {
            let weight = if round == 0 { 1.0 } else { 1.0 / link.residual(&moves).max(0.3) };
            let [i, j] = link.tiles;
            let mut local = Local::new(vec![(i, 1), (j, 1)]);
            local.add(&[1.0, -1.0], weight, [-link.gap.x, -link.gap.y]);
            // Where two links contradict each other and nothing else speaks, the stage does.
            local.add(&[1.0, -1.0], 0.01, [0.0; 2]);
            normal.add(&local);
        }
        // Holds the whole and every part that is not linked to the rest at its nominal place.
        (0..tiles).for_each(|i| normal.pull(i, 0, 1e-5, [0.0; 2]));
        let Some(found) = normal.solve(&mut pattern) else { return moves };
        let before = std::mem::take(&mut moves);
        moves = found.into_iter().map(|[x, y]| Xy::new(x, y)).collect();
        let changed = moves.iter().zip(&before).map(|(m, b)| (*m - *b).norm()).fold(0.0, f64::max);
        if round > 0 && changed < SETTLED_PX {
            break;
        }
    }
    moves
}

/// A number for each tile; tiles joined by links share one. The number is the smallest tile index of the part.
pub(super) fn parts(tiles: usize, links: impl IntoIterator<Item = [usize; 2]>) -> Vec<usize> {
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    let mut parent: Vec<usize> = (0..tiles).collect();
    for [a, b] in links {
        let (a, b) = (root(&mut parent, a), root(&mut parent, b));
        parent[a.max(b)] = a.min(b);
    }
    (0..tiles).map(|i| root(&mut parent, i)).collect()
}

/// The part with most tiles, the first of equals; `None` where no two tiles are joined.
pub(super) fn largest(parts: &[usize]) -> Option<usize> {
    let mut counts = vec![0usize; parts.len()];
    parts.iter().for_each(|&p| counts[p] += 1);
    let most = counts.iter().copied().max().filter(|&m| m > 1)?;
    counts.iter().position(|&c| c == most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_links_are_dropped_and_the_rest_placed() {
        // A 4 x 4 grid with known moves; every fifth link is wrong by more than 20 px.
        let moves: Vec<Xy<f64>> =
            (0..16).map(|i| Xy::new(f64::from(i * 7 % 11) - 5.0, f64::from(i * 5 % 13) - 6.0)).collect();
        let mut links = Vec::new();
        for i in 0..16usize {
            for j in [i + 1, i + 4] {
                if j < 16 && (j == i + 4 || j % 4 != 0) {
                    links.push(Link { tiles: [i, j], gap: moves[j] - moves[i] });
                }
            }
        }
        let wrong = |k: usize| k % 5 == 2;
        for (k, link) in links.iter_mut().enumerate().filter(|(k, _)| wrong(*k)) {
            link.gap = link.gap + Xy::new(20.0 + k as f64, -25.0);
        }
        let (found, kept) = rigid(16, &links, 3.0);
        assert!(kept.iter().enumerate().all(|(k, &kept)| kept != wrong(k)), "{kept:?}");
        let first = found[0] - moves[0];
        assert!(found.iter().zip(&moves).all(|(f, m)| (*f - *m - first).norm() < 0.05));
    }

    #[test]
    fn parts_are_named_by_their_first_tile() {
        let parts = parts(6, [[4, 2], [2, 5], [0, 1]]);
        assert_eq!(parts, [0, 0, 2, 3, 2, 2]);
        assert_eq!(largest(&parts), Some(2));
        assert_eq!(largest(&[0, 1, 2]), None);
    }
}
