//! Render's lens polynomial, `mpicbg.trakem2.transform.NonLinearCoordinateTransform`, as it stands in tile specifications.
//!
//! ```text
//! "order n  b0x b0y b1x b1y ..  mean0 .. mean(n-1)  spread0 .. spread(n-1)  width height"         n = (order + 1)(order + 2) / 2
//! x' = sum_k bkx f_k,   f_k = (x^j y^(i-j) - mean_k) / spread_k   for i = 1..order, j = i..0;   the last f is 100
//! ```

use crate::geometry::Xy;

/// Highest order that is read or written.
const MOST: usize = 9;

/// A polynomial map of tile pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct LensPolynomial {
    order: usize,
    /// Factor of each term along x and y.
    factors: Vec<[f64; 2]>,
    mean: Vec<f64>,
    spread: Vec<f64>,
    /// Width and height it was made for, pixels.
    size: Xy<f64>,
}

/// Numbers that are no lens polynomial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a lens polynomial: {0}; wanted \"order n factors(2n) means(n) spreads(n) width height\"")]
pub struct LensError(String);

/// Terms up to an order, the constant one included.
const fn terms(order: usize) -> usize {
    (order + 1) * (order + 2) / 2
}

impl LensPolynomial {
    /// Reads a `dataString`.
    ///
    /// # Errors
    /// Where the numbers are not as many as they say, or not finite.
    pub fn parse(data: &str) -> Result<Self, LensError> {
        let wrong = |what: String| LensError(what);
        let mut words = data.split_whitespace();
        let mut whole = |name: &str| -> Result<usize, LensError> {
            let word = words.next().ok_or_else(|| wrong(format!("no {name}")))?;
            word.parse().map_err(|e| wrong(format!("{name} is {word:?} ({e})")))
        };
        let (order, n) = (whole("order")?, whole("number of terms")?);
        if order > MOST || n != terms(order) {
            return Err(wrong(format!("order {order} with {n} terms (order 0 to {MOST} is read)")));
        }
        let numbers: Option<Vec<f64>> = words.map(|w| w.parse().ok().filter(|v: &f64| v.is_finite())).collect();
        let numbers = numbers.ok_or_else(|| wrong("a word that is no number".into()))?;
        if numbers.len() != 4 * n + 2 {
            return Err(wrong(format!(
                "{} numbers after the first two, {} terms need {}",
                numbers.len(),
                n,
                4 * n + 2
            )));
        }
        let factors = numbers[..2 * n].chunks_exact(2).map(|c| [c[0], c[1]]).collect();
        let (mean, spread) = (numbers[2 * n..3 * n].to_vec(), numbers[3 * n..4 * n].to_vec());
        if spread[..n - 1].contains(&0.0) {
            return Err(wrong("a spread of 0".into()));
        }
        Ok(Self { order, factors, mean, spread, size: Xy::new(numbers[4 * n], numbers[4 * n + 1]) })
    }

    /// The polynomial of total degree `order` (1 to 9) nearest to `map` over a tile of `size` pixels.
    pub fn fit(order: usize, size: Xy<u32>, map: impl Fn(Xy<f64>) -> Xy<f64>) -> Self {
        let order = order.clamp(1, MOST);
        let (w, h) = (f64::from(size.x.max(2) - 1), f64::from(size.y.max(2) - 1));
        // Nodes of the cosine: no swing between them at the rim.
        let n = 3 * order + 1;
        let node =
            |k: usize, length: f64| length * (1.0 - (std::f64::consts::PI * (k as f64 + 0.5) / n as f64).cos()) / 2.0;
        let places: Vec<Xy<f64>> = (0..n * n).map(|k| Xy::new(node(k % n, w), node(k / n, h))).collect();
        let mut lens = Self {
            order,
            factors: vec![[0.0; 2]; terms(order)],
            mean: vec![0.0; terms(order)],
            spread: vec![1.0; terms(order)],
            size: Xy::new(f64::from(size.x), f64::from(size.y)),
        };
        let raw: Vec<Vec<f64>> = places.iter().map(|p| lens.raw(*p)).collect();
        for k in 0..terms(order) - 1 {
            let mean = raw.iter().map(|r| r[k]).sum::<f64>() / raw.len() as f64;
            let spread = (raw.iter().map(|r| (r[k] - mean).powi(2)).sum::<f64>() / raw.len() as f64).sqrt();
            (lens.mean[k], lens.spread[k]) = (mean, spread.max(f64::MIN_POSITIVE));
        }
        *lens.mean.last_mut().expect("the constant term") = 100.0;
        let rows = places.iter().map(|p| lens.values(*p)).collect();
        let wanted = places.iter().map(|p| map(*p)).map(|q| [q.x, q.y]).collect();
        lens.factors = least_squares(rows, wanted);
        lens
    }

    /// The image of a tile pixel.
    pub fn apply(&self, p: Xy<f64>) -> Xy<f64> {
        let sum = |axis: usize, values: &[f64]| values.iter().zip(&self.factors).map(|(v, f)| v * f[axis]).sum();
        let values = self.values(p);
        Xy::new(sum(0, &values), sum(1, &values))
    }

    /// Products of powers, without the constant.
    fn raw(&self, p: Xy<f64>) -> Vec<f64> {
        let power = |v: f64, n: usize| v.powi(n as i32);
        (1..=self.order).flat_map(|i| (0..=i).rev().map(move |j| power(p.x, j) * power(p.y, i - j))).collect()
    }

    fn values(&self, p: Xy<f64>) -> Vec<f64> {
        let raw = self.raw(p).into_iter().zip(self.mean.iter().zip(&self.spread));
        raw.map(|(v, (mean, spread))| (v - mean) / spread).chain([100.0]).collect()
    }
}

impl std::fmt::Display for LensPolynomial {
    /// The `dataString`: reads back as the same numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.order, self.factors.len())?;
        let numbers = self.factors.iter().flatten().chain(&self.mean).chain(&self.spread);
        numbers.chain([&self.size.x, &self.size.y]).try_for_each(|v| write!(f, " {v:e}"))
    }
}

/// Minimises `|rows c - wanted|` by turning the rows into a triangle (modified Gram-Schmidt, twice for precision).
fn least_squares(mut rows: Vec<Vec<f64>>, wanted: Vec<[f64; 2]>) -> Vec<[f64; 2]> {
    let n = rows.first().map_or(0, Vec::len);
    let dot = |rows: &[Vec<f64>], a: usize, b: usize| rows.iter().map(|r| r[a] * r[b]).sum::<f64>();
    let mut triangle = vec![vec![0.0; n]; n];
    for k in 0..n {
        for _ in 0..2 {
            for j in 0..k {
                let part = dot(&rows, j, k);
                triangle[j][k] += part;
                rows.iter_mut().for_each(|r| r[k] -= part * r[j]);
            }
        }
        let length = dot(&rows, k, k).sqrt().max(f64::MIN_POSITIVE);
        triangle[k][k] = length;
        rows.iter_mut().for_each(|r| r[k] /= length);
    }
    let mut found = vec![[0.0; 2]; n];
    for k in (0..n).rev() {
        for axis in 0..2 {
            let along: f64 = rows.iter().zip(&wanted).map(|(r, w)| r[k] * w[axis]).sum();
            let later: f64 = (k + 1..n).map(|j| triangle[k][j] * found[j][axis]).sum();
            found[k][axis] = (along - later) / triangle[k][k];
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bent(p: Xy<f64>) -> Xy<f64> {
        let (u, v) = (p.x / 1500.0 - 1.0, p.y / 1300.0 - 1.0);
        Xy::new(1.001 * p.x + 3.0 * u * (u * u + v * v) + 700.0, p.y - 0.002 * p.x - 2.0 * v * u * u + u.powi(5) - 40.0)
    }

    #[test]
    fn a_polynomial_of_the_order_is_met_and_written_and_read_back_without_loss() {
        let lens = LensPolynomial::fit(5, Xy::new(3001, 2601), bent);
        let back = LensPolynomial::parse(&lens.to_string()).unwrap();
        assert_eq!(back, lens);
        for k in 0..400 {
            let p = Xy::new(f64::from(k % 20) * 157.0, f64::from(k / 20) * 136.0);
            assert!((back.apply(p) - bent(p)).norm() < 1e-6, "{p:?}");
        }
    }

    #[test]
    fn terms_stand_in_the_order_of_render() {
        // x' = x^2, y' = x y, by hand: order 2, 6 terms, factors of x, y, x^2, x y, y^2, 1.
        let text = "2 6 0 0 0 0 1 0 0 1 0 0 0 0  0 0 0 0 0 100  1 1 1 1 1 0  10 10";
        let lens = LensPolynomial::parse(text).unwrap();
        assert_eq!(lens.apply(Xy::new(3.0, 5.0)), Xy::new(9.0, 15.0));
    }

    #[test]
    fn what_is_no_lens_is_refused_with_what_is_wrong() {
        for (text, told) in [
            ("", "no order"),
            ("2 5", "order 2 with 5 terms"),
            ("1 3 0 0", "2 numbers after the first two"),
            ("1 3 0 0 0 0 0 x 0 0 0 1 1 1 9 9", "no number"),
            ("1 3 0 0 0 0 0 0 0 0 0 0 1 1 9 9", "a spread of 0"),
        ] {
            let error = LensPolynomial::parse(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
