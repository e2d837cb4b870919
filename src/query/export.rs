//! Statements from the command line: runs them one after the other, and writes the rows as text or as a file.
//!
//! Takes SQL and a [`Format`]. Rows are written as they arrive, so a result may be larger than memory; only `table` needs
//! all rows, to align them. Refuses a file or JSON for several results, and Parquet without a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, RecordBatch, StringArray};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::json::writer::{JsonArray, JsonFormat, LineDelimited};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_schema;
use datafusion::error::Result as DataFusionResult;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::DFParser;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::permit::{self, Access};
use super::{comments, engine};
use crate::error::{Error, Result};
use crate::terminal::{self, Output};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// Comma-separated values with a header; lists as text, binary as hexadecimal text.
    Csv,
    /// Tab-separated values, otherwise as csv.
    Tsv,
    /// An array of objects; binary as hexadecimal text.
    Json,
    /// One object per line, otherwise as json.
    #[value(alias = "ndjson")]
    NdJson,
    /// A Parquet file; needs an output file.
    Parquet,
}

/// Runs the statements of `sql` and writes their rows to `output`, or to standard output. Statements such as `SET` and
/// `CREATE VIEW` give no rows and print nothing. A file holds one result, and so does JSON, since two arrays are no JSON
/// document. Stops at the first error. A reader of standard output that closes it early is no error.
///
/// # Errors
/// [`Error::Query`] where a statement is wrong or fails; [`Error::Config`] for a statement that is not allowed, for several
/// results in a file or as JSON, and for Parquet without a file; [`Error::Io`] where the rows cannot be written.
pub async fn execute(
    context: &SessionContext,
    access: Access<'_>,
    sql: &str,
    format: Format,
    output: Option<&Path>,
) -> Result<()> {
    let statements = DFParser::parse_sql(sql)?;
    let results = statements.iter().filter(|statement| permit::gives_rows(statement)).count();
    if output.is_some() && results != 1 {
        return Err(Error::Config(format!(
            "--output takes the rows of one statement, not of {results}: run them one by one, each with its own file"
        )));
    }
    if output.is_none() && format == Format::Parquet {
        return Err(Error::Config("--format parquet needs a file: add --output FILE".into()));
    }
    if format == Format::Json && results > 1 {
        return Err(Error::Config(format!(
            "--format json is one array, which holds the rows of one statement, not of {results}: use --format nd-json, or \
             run them one by one"
        )));
    }
    for statement in statements {
        let to_print = permit::gives_rows(&statement);
        let heading = comments::heading(context, &statement).filter(|_| format == Format::Table);
        let plan = permit::plan(context, access, statement).await?;
        let rows = engine::rows(context, context.execute_logical_plan(plan).await?).await?;
        match output.filter(|_| to_print) {
            Some(path) => to_file(rows, format, path).await?,
            None => {
                let mut out = BufWriter::new(Output::default());
                // Where it cannot be written, neither can the rows.
                let _ = heading.map_or(Ok(()), |line| writeln!(out, "{line}"));
                let written = write(rows, format, &mut out).await;
                let flushed = out.flush().map_err(terminal::unwritable);
                // The reader closed the pipe, as `… | head` does.
                if out.get_ref().is_closed() {
                    return Ok(());
                }
                written.and(flushed)?;
            }
        }
    }
    Ok(())
}

async fn to_file(rows: SendableRecordBatchStream, format: Format, path: &Path) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(File::create(path).map_err(|e| Error::io(context(), e))?);
    write(rows, format, &mut file).await?;
    file.flush().map_err(|e| Error::io(context(), e))
}

/// Writes the rows, and gives their number. The writer is a local file or the terminal, and this is the only task of the
/// command, so blocking in it delays no other.
pub(super) async fn write(
    rows: SendableRecordBatchStream,
    format: Format,
    out: &mut (impl Write + Send),
) -> Result<usize> {
    let schema = rows.schema();
    let mut count = 0;
    let mut rows = rows.inspect_ok(|batch| count += batch.num_rows());
    // A statement such as CREATE VIEW has no columns, and nothing to write in any format.
    if schema.fields().is_empty() {
        while rows.try_next().await?.is_some() {}
        return Ok(0);
    }
    match format {
        Format::Table => {
            let mut batches = Vec::new();
            while let Some(batch) = rows.next().await {
                batches.push(batch?);
            }
            let text = pretty_format_batches_with_schema(schema, &batches).map_err(write_error)?;
            writeln!(out, "{text}").map_err(|e| write_error(e.into()))?;
        }
        Format::Csv | Format::Tsv => {
            let delimiter = if format == Format::Csv { b',' } else { b'\t' };
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).with_delimiter(delimiter).build(out);
            writer.write(&flat(&RecordBatch::new_empty(schema))?).map_err(write_error)?;
            while let Some(batch) = rows.next().await {
                writer.write(&flat(&batch?)?).map_err(write_error)?;
            }
        }
        Format::Json => {
            json::<JsonArray>(&mut rows, out).await?;
            writeln!(out).map_err(|e| write_error(e.into()))?;
        }
        Format::NdJson => json::<LineDelimited>(&mut rows, out).await?,
        Format::Parquet => {
            let properties = WriterProperties::builder().set_compression(Compression::ZSTD(Default::default()));
            let writer = ArrowWriter::try_new(out, schema, Some(properties.build()));
            let mut writer = writer.map_err(|e| write_error(e.into()))?;
            while let Some(batch) = rows.next().await {
                writer.write(&batch?).map_err(|e| write_error(e.into()))?;
            }
            writer.close().map_err(|e| write_error(e.into()))?;
        }
    }
    Ok(count)
}

async fn json<F: JsonFormat>(
    rows: &mut (impl Stream<Item = DataFusionResult<RecordBatch>> + Unpin),
    out: &mut (impl Write + Send),
) -> Result<()> {
    let mut writer = arrow::json::WriterBuilder::new().with_explicit_nulls(true).build::<_, F>(out);
    while let Some(batch) = rows.next().await {
        writer.write(&batch?).map_err(write_error)?;
    }
    writer.finish().map_err(write_error)
}

/// The batch with lists and structs as text, which is all that CSV can hold.
fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let nested = field.data_type().is_nested();
        let data_type = if nested { DataType::Utf8 } else { field.data_type().clone() };
        if can_cast_types(column.data_type(), &data_type) {
            columns.push(cast(column, &data_type).map_err(write_error)?);
        } else {
            columns.push(Arc::new(as_text(column).map_err(write_error)?));
        }
        fields.push(Field::new(field.name(), data_type, true));
    }
    RecordBatch::try_new(Schema::new(fields).into(), columns).map_err(write_error)
}

/// Each value as a table shows it: for structs and maps, which no cast turns into text.
fn as_text(column: &ArrayRef) -> Result<StringArray, ArrowError> {
    let options = FormatOptions::default();
    let texts = ArrayFormatter::try_new(column, &options)?;
    let text = |row| column.is_valid(row).then(|| texts.value(row).try_to_string()).transpose();
    (0..column.len()).map(text).collect()
}

pub(super) fn write_error(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => Error::io("cannot write the rows", source),
        other => Error::Query(other.into()),
    }
}
