//! What a folder of images does not say of its sections, and what the numbers in their names do: whether one seems to be missing.

use std::collections::BTreeMap;

use kinesin_acquire::dataset::Assumed;
use kinesin_stream::volume::SectionImage;

/// Numbers left out that are told one by one.
const MOST: usize = 5;

/// What somebody who gave a folder of images, and perhaps the side of their pixels, is told.
pub(crate) fn remarks(files: &[SectionImage], pixel_nm: Option<f64>) -> Vec<String> {
    let (assumed, mut told) = (Assumed::default(), vec![]);
    if pixel_nm.is_none() {
        told.push(format!(
            "the images do not say their pixel size; {} nm is assumed (--pixel-nm)",
            assumed.pixel_size_nm
        ));
    }
    told.push(format!("the images do not say their section thickness; {} nm is assumed", assumed.thickness_nm));
    let name = |f: &SectionImage| f.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let names: Vec<String> = files.iter().map(name).collect();
    let skips = skips(&names);
    for (a, b) in skips.iter().take(MOST) {
        let (a, b) = (&names[*a], &names[*b]);
        told.push(format!(
            "{b} comes right after {a}; an all-black image keeps the place of a section that is missing"
        ));
    }
    if skips.len() > MOST {
        told.push(format!("numbers are left out at {} places in all", skips.len()));
    }
    told
}

/// Pairs of neighbours (indexes) between whose numbers there is room for others. None where names do not differ by one number alone, or
/// where there is no usual step, as with times.
fn skips(names: &[String]) -> Vec<(usize, usize)> {
    let numbers: Option<Vec<(&str, u64, &str)>> = names.iter().map(|n| split(n)).collect();
    let Some(numbers) = numbers else { return vec![] };
    if numbers.windows(2).any(|w| (w[0].0, w[0].2) != (w[1].0, w[1].2)) {
        return vec![];
    }
    let steps: Vec<u64> = numbers.windows(2).map(|w| w[1].1.abs_diff(w[0].1)).collect();
    let mut counts = BTreeMap::new();
    steps.iter().for_each(|s| *counts.entry(*s).or_insert(0usize) += 1);
    let Some((&usual, _)) = counts.iter().find(|(_, n)| 2 * **n > steps.len()) else { return vec![] };
    (0..steps.len()).filter(|i| usual > 0 && steps[*i] > usual).map(|i| (i, i + 1)).collect()
}

/// Text before, value of and text after the last run of digits of a file's name, its ending left out.
fn split(name: &str) -> Option<(&str, u64, &str)> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let end = stem.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = stem[..end].trim_end_matches(|c: char| c.is_ascii_digit()).len();
    Some((&stem[..start], stem[start..end].parse().ok()?, &stem[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<(usize, usize)> {
        skips(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn a_number_that_is_left_out_is_seen_whatever_the_step() {
        assert_eq!(of(&["s1.png", "s2.png", "s3.png", "s5.png"]), [(2, 3)]);
        assert_eq!(of(&["w2_000_raw.tif", "w2_010_raw.tif", "w2_020_raw.tif", "w2_050_raw.tif"]), [(2, 3)]);
    }

    #[test]
    fn nothing_is_said_of_names_without_a_usual_step() {
        assert!(of(&["s1.png", "s2.png", "s3.png"]).is_empty());
        assert!(of(&["t090001.png", "t090417.png", "t091000.png"]).is_empty(), "times");
        assert!(of(&["a1.png", "a2.png", "b9.png"]).is_empty(), "two series");
        assert!(of(&["one.png", "two.png"]).is_empty());
        assert!(of(&["s7.png"]).is_empty());
    }
}
