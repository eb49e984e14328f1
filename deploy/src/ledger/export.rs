//! Entries as CSV and as Parquet, one after the other.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use kinesin_stream::ledger::{LedgerError, State};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::entry::Entry;

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    /// The ledger does not read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file cannot be made or synced.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The line cannot be written.
    #[error(transparent)]
    Csv(#[from] csv::Error),
    /// The row group cannot be written.
    #[error(transparent)]
    Parquet(#[from] ParquetError),
}

/// Entries one after the other.
type Entries<'a> = dyn Iterator<Item = Result<Entry, LedgerError>> + 'a;

/// One line a tile, with a line of names first.
pub(super) fn csv(path: &Path, entries: &mut Entries<'_>) -> Result<(), ExportError> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_path(path)?;
    let names = ["section", "region", "mfov", "attempt", "beam", "name", "state", "reason", "hash"];
    let times = State::ALL.map(|s| format!("{s}_ms"));
    // Written here and not by the first entry, so that an empty answer has them too.
    writer.write_record(names.into_iter().chain(times.iter().map(String::as_str)))?;
    for entry in entries {
        writer.serialize(entry?)?;
    }
    writer.flush()?;
    Ok(())
}

/// Tiles in a row group: what is held in memory at a time.
const GROUP: usize = 16 << 10;

/// One row a tile; times are timestamps.
pub(super) fn parquet(path: &Path, entries: &mut Entries<'_>) -> Result<(), ExportError> {
    let times: String = State::ALL.iter().map(|s| format!("optional int64 {s} (TIMESTAMP(MILLIS, true));")).collect();
    let schema = format!(
        "message tile {{
            required int32 section; required int32 region; required int32 mfov; required int32 attempt; required int32 beam;
            required binary name (STRING); required binary state (STRING);
            optional binary reason (STRING); optional binary hash (STRING);
            {times}
        }}"
    );
    let schema = Arc::new(parse_message_type(&schema)?);
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(File::create(path)?, schema, properties)?;
    loop {
        let group: Vec<Entry> = entries.take(GROUP).collect::<Result<_, _>>()?;
        if group.is_empty() {
            break;
        }
        let mut row_group = writer.next_row_group()?;
        columns(&mut row_group, &group)?;
        row_group.close()?;
    }
    writer.close()?;
    Ok(())
}

/// In the order of the schema.
fn columns(out: &mut SerializedRowGroupWriter<'_, File>, group: &[Entry]) -> Result<(), ParquetError> {
    let numbers: [fn(&Entry) -> u32; 5] =
        [|e| e.section, |e| e.region.into(), |e| e.mfov, |e| e.attempt.into(), |e| e.beam];
    for number in numbers {
        column::<Int32Type>(out, group.iter().map(|e| Some(number(e) as i32)), false)?;
    }
    let text = |t: &str| Some(ByteArray::from(t.as_bytes().to_vec()));
    column::<ByteArrayType>(out, group.iter().map(|e| text(&e.name)), false)?;
    column::<ByteArrayType>(out, group.iter().map(|e| text(e.state.name())), false)?;
    column::<ByteArrayType>(out, group.iter().map(|e| e.reason.as_deref().and_then(text)), true)?;
    column::<ByteArrayType>(out, group.iter().map(|e| e.hash.as_deref().and_then(text)), true)?;
    for state in State::ALL {
        column::<Int64Type>(out, group.iter().map(|e| e.times()[state as usize].map(|ms| ms as i64)), true)?;
    }
    Ok(())
}

/// `optional` columns say of each row whether it is there.
fn column<T: DataType>(
    out: &mut SerializedRowGroupWriter<'_, File>,
    values: impl Iterator<Item = Option<T::T>>,
    optional: bool,
) -> Result<(), ParquetError> {
    let Some(mut writer) = out.next_column()? else {
        return Err(ParquetError::General("more columns than the schema has".into()));
    };
    let values: Vec<Option<T::T>> = values.collect();
    let there: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    writer.typed::<T>().write_batch(&values, optional.then_some(there.as_slice()), None)?;
    writer.close()
}
