//! One image file to grey values: TIFF, PNG or BMP, 8-bit grey, one page. The format is told by the first bytes, never by the
//! name. Whatever else arrives is refused with what was found and what was expected; nothing is scaled or converted, because
//! a converted tile would no longer be what the microscope measured.

use std::io::Cursor;

use kinesin_stream::pixels::Pixels;
use kinesin_stream::tile::Reason;

/// Largest image that is decoded, pixels: 16384 x 16384. A damaged header cannot ask for more memory than that.
pub const LARGEST: usize = 1 << 28;

/// Why a file is not a tile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("the image file has 0 bytes: writing it never finished; wanted an 8-bit grey TIFF, PNG or BMP")]
    Empty,
    /// None of the formats.
    #[error("not an image: starts with bytes {found}; wanted an 8-bit grey TIFF, PNG or BMP")]
    Format {
        /// The first bytes, hexadecimal.
        found: String,
    },
    /// A good image of another kind.
    #[error("{format} image with {found}; wanted one page of 8-bit grey; convert it before sending")]
    Kind {
        /// Which format.
        format: &'static str,
        /// What it holds.
        found: String,
    },
    /// Cut short or damaged.
    #[error("{format} image cut short or damaged: {what}; wanted a whole file, got {bytes} bytes")]
    Damaged {
        /// Which format.
        format: &'static str,
        /// What went wrong.
        what: String,
        /// Length of the file.
        bytes: usize,
    },
    /// Larger than any tile.
    #[error("{format} image of {width} x {height} px; wanted at most {LARGEST} px in all")]
    Size {
        /// Which format.
        format: &'static str,
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
    },
}

impl From<DecodeError> for Reason {
    fn from(e: DecodeError) -> Self {
        Self::Unreadable(e.to_string())
    }
}

/// Decodes a whole image file.
///
/// # Errors
/// See [`DecodeError`]; no bytes make it panic.
pub fn decode(file: &[u8]) -> Result<Pixels, DecodeError> {
    match file {
        [] => Err(DecodeError::Empty),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => tiff(file),
        [0x89, b'P', b'N', b'G', ..] => png(file),
        [b'B', b'M', ..] => bmp(file),
        _ => {
            let start: Vec<String> = file.iter().take(8).map(|b| format!("{b:02x}")).collect();
            Err(DecodeError::Format { found: start.join(" ") })
        }
    }
}

fn sized(format: &'static str, width: u64, height: u64) -> Result<(usize, usize), DecodeError> {
    let fits = width.checked_mul(height).is_some_and(|n| n > 0 && n <= LARGEST as u64);
    if fits { Ok((width as usize, height as usize)) } else { Err(DecodeError::Size { format, width, height }) }
}

fn tiff(file: &[u8]) -> Result<Pixels, DecodeError> {
    const FORMAT: &str = "TIFF";
    let damaged = |e: tiff::TiffError| DecodeError::Damaged { format: FORMAT, what: e.to_string(), bytes: file.len() };
    let mut decoder = tiff::decoder::Decoder::new(Cursor::new(file)).map_err(damaged)?;
    let colour = decoder.colortype().map_err(damaged)?;
    if colour != tiff::ColorType::Gray(8) {
        return Err(DecodeError::Kind { format: FORMAT, found: tiff_kind(colour) });
    }
    if decoder.more_images() {
        return Err(DecodeError::Kind { format: FORMAT, found: "several pages".into() });
    }
    let (width, height) = decoder.dimensions().map_err(damaged)?;
    let (width, height) = sized(FORMAT, width.into(), height.into())?;
    match decoder.read_image().map_err(damaged)? {
        tiff::decoder::DecodingResult::U8(grey) if grey.len() == width * height => Ok(Pixels::new(width, height, grey)),
        tiff::decoder::DecodingResult::U8(grey) => {
            let what = format!("{} grey values for {width} x {height} px", grey.len());
            Err(DecodeError::Damaged { format: FORMAT, what, bytes: file.len() })
        }
        _ => Err(DecodeError::Kind { format: FORMAT, found: "grey values that are not unsigned 8-bit".into() }),
    }
}

fn tiff_kind(colour: tiff::ColorType) -> String {
    match colour {
        tiff::ColorType::Gray(bits) => format!("{bits}-bit grey"),
        tiff::ColorType::Palette(bits) => format!("a {bits}-bit colour palette"),
        tiff::ColorType::RGB(bits) => format!("{bits}-bit colour (RGB)"),
        tiff::ColorType::RGBA(bits) => format!("{bits}-bit colour (RGBA)"),
        tiff::ColorType::GrayA(bits) => format!("{bits}-bit grey and a mask"),
        other => format!("{other:?} colour"),
    }
}

fn png(file: &[u8]) -> Result<Pixels, DecodeError> {
    const FORMAT: &str = "PNG";
    let damaged =
        |e: png::DecodingError| DecodeError::Damaged { format: FORMAT, what: e.to_string(), bytes: file.len() };
    let limits = png::Limits { bytes: 2 * LARGEST };
    let mut reader = png::Decoder::new_with_limits(Cursor::new(file), limits).read_info().map_err(damaged)?;
    let info = reader.info();
    if (info.color_type, info.bit_depth) != (png::ColorType::Grayscale, png::BitDepth::Eight) {
        let colour = match info.color_type {
            png::ColorType::Grayscale => "grey",
            png::ColorType::GrayscaleAlpha => "grey and a mask",
            png::ColorType::Rgb => "colour (RGB)",
            png::ColorType::Rgba => "colour (RGBA)",
            png::ColorType::Indexed => "colour palette",
        };
        return Err(DecodeError::Kind { format: FORMAT, found: format!("{}-bit {colour}", info.bit_depth as u8) });
    }
    let (width, height) = sized(FORMAT, info.width.into(), info.height.into())?;
    let mut grey = vec![0; width * height];
    reader.next_frame(&mut grey).map_err(damaged)?;
    Ok(Pixels::new(width, height, grey))
}

/// Windows bitmap, 8 bit with a grey palette; rows from the bottom up, or from the top down where the height is negative.
fn bmp(file: &[u8]) -> Result<Pixels, DecodeError> {
    const FORMAT: &str = "BMP";
    let damaged = |what: &str| DecodeError::Damaged { format: FORMAT, what: what.into(), bytes: file.len() };
    let u32_at = |at: usize| -> Result<u32, DecodeError> {
        let four = file
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(|| damaged("the header is not complete"))?;
        Ok(u32::from_le_bytes(four))
    };
    let (start, header) = (u32_at(10)? as usize, u32_at(14)? as usize);
    if header < 40 {
        return Err(DecodeError::Kind {
            format: FORMAT,
            found: format!("a header of {header} bytes (40 or more are read)"),
        });
    }
    let (width, height) = (u32_at(18)? as i32, u32_at(22)? as i32);
    let (bits, packing) = (u32_at(28)? & 0xffff, u32_at(30)?);
    if bits != 8 || packing != 0 {
        let packed = if packing == 0 { String::new() } else { format!(", compressed (method {packing})") };
        return Err(DecodeError::Kind { format: FORMAT, found: format!("{bits} bits a pixel{packed}") });
    }
    let (columns, rows) = sized(FORMAT, u64::from(width.max(0) as u32), u64::from(height.unsigned_abs()))?;
    let colours = match u32_at(46)? {
        0 => 256,
        n => n.min(256) as usize,
    };
    let palette =
        file.get(14 + header..14 + header + 4 * colours).ok_or_else(|| damaged("the palette is not complete"))?;
    if palette.chunks_exact(4).any(|c| c[0] != c[1] || c[1] != c[2]) {
        return Err(DecodeError::Kind { format: FORMAT, found: "a colour palette".into() });
    }
    let greys: Vec<u8> = palette.iter().copied().step_by(4).collect();
    // Most files have a palette that leaves values as they are.
    let plain = greys.len() == 256 && greys.iter().enumerate().all(|(i, g)| i == usize::from(*g));
    let stride = columns.next_multiple_of(4);
    let mut grey = Vec::with_capacity(columns * rows);
    for row in 0..rows {
        let line = if height > 0 { rows - 1 - row } else { row };
        let from = start + line * stride;
        let values = file.get(from..from + columns).ok_or_else(|| damaged("rows are missing"))?;
        if plain {
            grey.extend_from_slice(values);
        } else if values.iter().all(|v| usize::from(*v) < greys.len()) {
            grey.extend(values.iter().map(|v| greys[usize::from(*v)]));
        } else {
            return Err(damaged("a value beyond its palette"));
        }
    }
    Ok(Pixels::new(columns, rows, grey))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Pixels {
        Pixels::new(5, 3, (0..15).map(|i| i * 16 + 1).collect::<Vec<u8>>())
    }

    fn tiff_of(write: impl FnOnce(&mut tiff::encoder::TiffEncoder<&mut Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        write(&mut tiff::encoder::TiffEncoder::new(&mut file).unwrap());
        file.into_inner()
    }

    fn grey_tiff() -> Vec<u8> {
        tiff_of(|e| e.write_image::<tiff::encoder::colortype::Gray8>(5, 3, picture().data()).unwrap())
    }

    fn png_of(colour: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut e = png::Encoder::new(&mut file, 5, 3);
        e.set_color(colour);
        e.set_depth(depth);
        e.write_header().unwrap().write_image_data(data).unwrap();
        file
    }

    /// An 8-bit bitmap with an inverted palette, to see that the palette is used.
    fn bmp_of(image: &Pixels, top_down: bool) -> Vec<u8> {
        let (w, h) = (image.width(), image.height());
        let height = if top_down { -(h as i32) } else { h as i32 };
        let mut file = b"BM\0\0\0\0\0\0\0\0".to_vec();
        for v in [54 + 1024, 40, w as u32, height as u32, 1 | 8 << 16, 0, 0, 0, 0, 0, 0] {
            file.extend(v.to_le_bytes());
        }
        (0..=255u8).for_each(|i| file.extend([255 - i, 255 - i, 255 - i, 0]));
        for row in 0..h {
            let line = if top_down { row } else { h - 1 - row };
            file.extend(image.row(line).iter().map(|v| 255 - v));
            file.extend(std::iter::repeat_n(0, w.next_multiple_of(4) - w));
        }
        file
    }

    #[test]
    fn every_format_gives_the_same_grey_values() {
        let png = png_of(png::ColorType::Grayscale, png::BitDepth::Eight, picture().data());
        for file in [grey_tiff(), png, bmp_of(&picture(), false), bmp_of(&picture(), true)] {
            assert_eq!(decode(&file).as_ref(), Ok(&picture()));
        }
    }

    #[test]
    fn other_depths_and_colours_are_refused_by_name() {
        use tiff::encoder::colortype::{Gray8, Gray16, RGB8};
        let two = tiff_of(|e| (0..2).for_each(|_| e.write_image::<Gray8>(5, 3, picture().data()).unwrap()));
        let mut bitmap = bmp_of(&picture(), false);
        bitmap[28] = 24;
        let cases = [
            (
                tiff_of(|e| e.write_image::<Gray16>(5, 3, &[7; 15]).unwrap()),
                "TIFF image with 16-bit grey; wanted one page of 8-bit grey",
            ),
            (tiff_of(|e| e.write_image::<RGB8>(5, 3, &[7; 45]).unwrap()), "TIFF image with 8-bit colour (RGB)"),
            (two, "TIFF image with several pages"),
            (png_of(png::ColorType::Rgb, png::BitDepth::Eight, &[7; 45]), "PNG image with 8-bit colour (RGB)"),
            (png_of(png::ColorType::Grayscale, png::BitDepth::Sixteen, &[7; 30]), "PNG image with 16-bit grey"),
            (bitmap, "BMP image with 24 bits a pixel"),
            (b"GIF89a....".to_vec(), "not an image: starts with bytes 47 49 46 38"),
            (Vec::new(), "0 bytes"),
        ];
        for (file, text) in cases {
            let error = decode(&file).expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let png = png_of(png::ColorType::Grayscale, png::BitDepth::Eight, picture().data());
        let bitmap = bmp_of(&picture(), false);
        // The last bytes of a bitmap are padding, those of a PNG its closing mark: without them every grey value is there.
        for (file, needed) in
            [(grey_tiff(), grey_tiff().len()), (png.clone(), png.len() - 12), (bitmap.clone(), bitmap.len() - 3)]
        {
            for end in 0..needed {
                assert!(decode(&file[..end]).is_err(), "cut at {end} of {}", file.len());
            }
        }
    }

    #[test]
    fn a_damaged_header_cannot_ask_for_more_memory_than_a_tile() {
        let mut file = bmp_of(&picture(), false);
        file[18..26].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]);
        assert!(matches!(decode(&file), Err(DecodeError::Size { .. })));
    }

    proptest::proptest! {
        #[test]
        fn changed_bytes_never_panic(at in 0usize..200, value: u8, which in 0usize..3) {
            let png = png_of(png::ColorType::Grayscale, png::BitDepth::Eight, picture().data());
            let mut file = vec![grey_tiff(), png, bmp_of(&picture(), false)].swap_remove(which);
            let at = at % file.len();
            file[at] = value;
            let _unused = decode(&file);
        }
    }
}
