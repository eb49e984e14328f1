//! Rectangles of a tile: moved, grown, and cut into blocks and parts.

use kinesin_stream::geometry::{BoxXy, Xy};

/// Blocks of about `area` pixels that cover `common` without overlap, in rows.
pub(super) fn block_rects(common: &BoxXy, area: f64) -> Vec<BoxXy> {
    let size = common.size();
    let (along, across) = (size.x.max(size.y), size.x.min(size.y));
    let all = (along * across) as f64;
    let beside = ((across as f64 / area.sqrt()).round() as usize).max(1);
    // A strip in two or three where it can be had: one cannot show a slope.
    let fewest = match all {
        _ if along < 3 * across => 1,
        a if a >= area => 3,
        a if a >= area / 10.0 => 2,
        _ => 1,
    };
    let behind = ((all / area / beside as f64).round() as usize).max(fewest);
    let (nx, ny) = if size.x > size.y { (behind, beside) } else { (beside, behind) };
    let cut = |from: i64, to: i64, n: usize, i: usize| from + ((to - from) * i as i64) / n as i64;
    let mut rects = Vec::with_capacity(nx * ny);
    for j in 0..ny {
        let (y0, y1) = (cut(common.min.y, common.max.y, ny, j), cut(common.min.y, common.max.y, ny, j + 1));
        for i in 0..nx {
            let (x0, x1) = (cut(common.min.x, common.max.x, nx, i), cut(common.min.x, common.max.x, nx, i + 1));
            rects.push(BoxXy { min: Xy::new(x0, y0), max: Xy::new(x1, y1) });
        }
    }
    rects
}

/// The middle of a rectangle, of about `area` pixels at most and of its shape.
pub(super) fn middle_of(rect: &BoxXy, area: f64) -> BoxXy {
    let size = rect.size();
    let share = (area / (size.x * size.y).max(1) as f64).sqrt().min(1.0);
    let rim = |n: usize| (n as f64 * (1.0 - share) / 2.0) as i64;
    let by = Xy::new(rim(size.x), rim(size.y));
    BoxXy { min: Xy::new(rect.min.x + by.x, rect.min.y + by.y), max: minus(rect.max, by) }
}

/// Three parts of a rectangle along its longer side.
pub(super) fn thirds(rect: &BoxXy) -> Vec<BoxXy> {
    let size = rect.size();
    (0..3)
        .map(|i| {
            let (mut min, mut max) = (rect.min, rect.max);
            if size.x > size.y {
                (min.x, max.x) = (rect.min.x + size.x as i64 * i / 3, rect.min.x + size.x as i64 * (i + 1) / 3);
            } else {
                (min.y, max.y) = (rect.min.y + size.y as i64 * i / 3, rect.min.y + size.y as i64 * (i + 1) / 3);
            }
            BoxXy { min, max }
        })
        .collect()
}

/// `a` less `b`.
pub(super) fn minus(a: Xy<i64>, b: Xy<i64>) -> Xy<i64> {
    Xy::new(a.x - b.x, a.y - b.y)
}

/// The rectangle `by` further.
pub(super) fn moved(rect: &BoxXy, by: Xy<i64>) -> BoxXy {
    BoxXy { min: Xy::new(rect.min.x + by.x, rect.min.y + by.y), max: Xy::new(rect.max.x + by.x, rect.max.y + by.y) }
}

/// The rectangle with a rim of `by` pixels.
pub(super) fn grown(rect: &BoxXy, by: i64) -> BoxXy {
    BoxXy { min: Xy::new(rect.min.x - by, rect.min.y - by), max: Xy::new(rect.max.x + by, rect.max.y + by) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_rectangle_keeps_its_shape_and_small_ones_stay() {
        let rect = BoxXy { min: Xy::new(10, 20), max: Xy::new(110, 70) };
        assert_eq!(middle_of(&rect, 5000.0), rect);
        assert_eq!(middle_of(&rect, 1250.0), BoxXy { min: Xy::new(35, 32), max: Xy::new(85, 58) });
    }
}
