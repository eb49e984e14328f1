//! A network without weights: grows into what is bright. For tests and benches of everything around inference.

use super::{Network, NetworkError};

/// Flood-filling interface (image, seed -> logits): a voxel of normalised grey at or above `threshold` that touches, by a face,
/// a voxel whose seed logit is positive, joins; repeated `rounds` times. Joined voxels become `inside`, all others `outside`.
#[derive(Clone, Debug)]
pub struct RuleNetwork {
    shape: [usize; 3],
    threshold: f32,
    rounds: usize,
    /// Items computed so far.
    pub evaluations: u64,
}

const INSIDE: f32 = 4.0;
const OUTSIDE: f32 = -4.0;

impl RuleNetwork {
    /// For a field of view of this shape (z, y, x) and this threshold on normalised grey.
    pub fn new(shape: [usize; 3], threshold: f32) -> Self {
        Self { shape, threshold, rounds: shape.iter().sum(), evaluations: 0 }
    }

    fn grow(&self, image: &[f32], seed: &[f32], out: &mut [f32]) {
        let [nz, ny, nx] = self.shape;
        let bright = |i: usize| image[i] >= self.threshold;
        let mut front: Vec<usize> = (0..seed.len()).filter(|&i| seed[i] > 0.0 && bright(i)).collect();
        out.fill(OUTSIDE);
        for &i in &front {
            out[i] = INSIDE;
        }
        for _ in 0..self.rounds {
            let mut next = Vec::new();
            for &i in &front {
                let (z, y, x) = (i / (ny * nx), i / nx % ny, i % nx);
                let faces = [
                    (z > 0).then(|| i - ny * nx),
                    (z + 1 < nz).then(|| i + ny * nx),
                    (y > 0).then(|| i - nx),
                    (y + 1 < ny).then(|| i + nx),
                    (x > 0).then(|| i - 1),
                    (x + 1 < nx).then(|| i + 1),
                ];
                for j in faces.into_iter().flatten() {
                    if out[j] == OUTSIDE && bright(j) {
                        out[j] = INSIDE;
                        next.push(j);
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            front = next;
        }
    }
}

impl Network for RuleNetwork {
    fn run(&mut self, inputs: &[&[f32]], items: usize, out: &mut [f32]) -> Result<(), NetworkError> {
        let n: usize = self.shape.iter().product();
        let [image, seed] = inputs else {
            return Err(NetworkError(format!("2 inputs expected, got {}", inputs.len())));
        };
        for i in 0..items {
            let at = i * n..(i + 1) * n;
            self.grow(&image[at.clone()], &seed[at.clone()], &mut out[at]);
        }
        self.evaluations += items as u64;
        Ok(())
    }
}
