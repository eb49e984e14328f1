//! One image file as a section: PNG (8 or 16 bit), TIFF (8 to 64 bit), JPEG; grey or labels, one channel.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::planes::{Plane, Samples};
use super::{Dtype, VolumeError, extension};

const ONE_CHANNEL: &str =
    "convert it to one channel of unsigned whole numbers (8-bit grey for an image, ids for labels)";

/// Width, height and type, from the head of the file.
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) dtype: Dtype,
}

/// Whether files of this name are read as sections.
pub(super) fn is_image(path: &Path) -> bool {
    matches!(extension(path).as_deref(), Some("png" | "tif" | "tiff" | "jpg" | "jpeg"))
}

/// The head of an image file.
pub(super) fn header(path: &Path) -> Result<Header, VolumeError> {
    match extension(path).as_deref() {
        Some("png") => {
            let reader = open_png(path)?;
            let dtype = png_dtype(path, &reader)?;
            let (width, height) = reader.info().size();
            Ok(Header { width: width as usize, height: height as usize, dtype })
        }
        Some("tif" | "tiff") => tiff_header(path, &mut open_tiff(path)?),
        _ => {
            let plane = decode_jpeg(path, &read_file(path)?)?;
            Ok(Header { width: plane.width, height: plane.height, dtype: Dtype::U8 })
        }
    }
}

/// The whole image.
pub(super) fn decode(path: &Path) -> Result<Plane, VolumeError> {
    match extension(path).as_deref() {
        Some("png") => decode_png(path),
        Some("tif" | "tiff") => {
            let mut decoder = open_tiff(path)?;
            if decoder.more_images() {
                return Err(VolumeError::unsupported(
                    path,
                    "a TIFF of several pages in a folder of sections",
                    "give one page a section, or the multi-page file itself as the volume",
                ));
            }
            decode_tiff(path, &mut decoder)
        }
        _ => decode_jpeg(path, &read_file(path)?),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, VolumeError> {
    std::fs::read(path).map_err(|e| VolumeError::io(path, e))
}

fn open_file(path: &Path) -> Result<BufReader<File>, VolumeError> {
    File::open(path).map(BufReader::new).map_err(|e| VolumeError::io(path, e))
}

fn open_png(path: &Path) -> Result<png::Reader<BufReader<File>>, VolumeError> {
    png::Decoder::new(open_file(path)?)
        .read_info()
        .map_err(|e| VolumeError::format(path, format!("cannot be read as PNG: {e}")))
}

fn png_dtype(path: &Path, reader: &png::Reader<BufReader<File>>) -> Result<Dtype, VolumeError> {
    match reader.output_color_type() {
        (png::ColorType::Grayscale, png::BitDepth::Eight) => Ok(Dtype::U8),
        (png::ColorType::Grayscale, png::BitDepth::Sixteen) => Ok(Dtype::U16),
        (color, depth) => {
            Err(VolumeError::unsupported(path, format!("a PNG of {color:?}, {} bit", depth as u8), ONE_CHANNEL))
        }
    }
}

fn decode_png(path: &Path) -> Result<Plane, VolumeError> {
    let mut reader = open_png(path)?;
    let dtype = png_dtype(path, &reader)?;
    let size = reader.output_buffer_size().ok_or_else(|| VolumeError::format(path, "is too large for this machine"))?;
    let mut bytes = vec![0; size];
    let frame =
        reader.next_frame(&mut bytes).map_err(|e| VolumeError::format(path, format!("cannot be read as PNG: {e}")))?;
    bytes.truncate(frame.buffer_size());
    let samples = match dtype {
        Dtype::U16 => Samples::U16(bytes.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect()),
        _ => Samples::U8(bytes),
    };
    Ok(Plane { height: frame.height as usize, width: frame.width as usize, samples })
}

/// A decoder at the first page.
pub(super) fn open_tiff(path: &Path) -> Result<Decoder<BufReader<File>>, VolumeError> {
    let mut limits = Limits::default();
    // A section of a large volume is more than the 256 MiB that the decoder would take.
    limits.decoding_buffer_size = 8 << 30;
    limits.intermediate_buffer_size = 1 << 30;
    limits.ifd_value_size = 64 << 20;
    Decoder::new(open_file(path)?).map(|d| d.with_limits(limits)).map_err(|e| bad_tiff(path, &e))
}

pub(super) fn bad_tiff(path: &Path, e: &tiff::TiffError) -> VolumeError {
    VolumeError::format(path, format!("cannot be read as TIFF: {e}"))
}

/// Size and type of the page at which the decoder stands.
pub(super) fn tiff_header<R: Read + Seek>(path: &Path, decoder: &mut Decoder<R>) -> Result<Header, VolumeError> {
    let (width, height) = decoder.dimensions().map_err(|e| bad_tiff(path, &e))?;
    let color = decoder.colortype().map_err(|e| bad_tiff(path, &e))?;
    let format = decoder.find_tag_unsigned_vec::<u16>(tiff::tags::Tag::SampleFormat).map_err(|e| bad_tiff(path, &e))?;
    let unsigned = format.is_none_or(|f| f.iter().all(|&f| f == 1));
    let dtype = match color {
        ColorType::Gray(8) if unsigned => Dtype::U8,
        ColorType::Gray(16) if unsigned => Dtype::U16,
        ColorType::Gray(32) if unsigned => Dtype::U32,
        ColorType::Gray(64) if unsigned => Dtype::U64,
        _ => {
            let kind = if unsigned { "" } else { ", signed or floating" };
            return Err(VolumeError::unsupported(path, format!("a TIFF of {color:?}{kind}"), ONE_CHANNEL));
        }
    };
    Ok(Header { width: width as usize, height: height as usize, dtype })
}

/// The page at which the decoder stands.
pub(super) fn decode_tiff<R: Read + Seek>(path: &Path, decoder: &mut Decoder<R>) -> Result<Plane, VolumeError> {
    let Header { width, height, .. } = tiff_header(path, decoder)?;
    let samples = match decoder.read_image().map_err(|e| bad_tiff(path, &e))? {
        DecodingResult::U8(v) => Samples::U8(v),
        DecodingResult::U16(v) => Samples::U16(v),
        DecodingResult::U32(v) => Samples::U32(v),
        DecodingResult::U64(v) => Samples::U64(v),
        _ => return Err(VolumeError::unsupported(path, "a TIFF of signed or floating values", ONE_CHANNEL)),
    };
    Ok(Plane { height, width, samples })
}

/// A grey JPEG; colour is refused.
pub(super) fn decode_jpeg(path: &Path, bytes: &[u8]) -> Result<Plane, VolumeError> {
    let bad = |what: String| VolumeError::format(path, format!("cannot be read as JPEG: {what}"));
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::Luma);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| bad(e.to_string()))?;
    let info = decoder.info().ok_or_else(|| bad("no header".into()))?;
    if info.components != 1 {
        return Err(VolumeError::unsupported(
            path,
            format!("a JPEG of {} channels", info.components),
            "convert it to 8-bit grey",
        ));
    }
    let pixels = decoder.decode().map_err(|e| bad(e.to_string()))?;
    Ok(Plane { height: usize::from(info.height), width: usize::from(info.width), samples: Samples::U8(pixels) })
}
