//! Tables as spreadsheets and other programs save them: cells separated by tabs.
//!
//! Takes the bytes of a `.tsv` piece by piece; gives its rows of trimmed cells, one at a time. Holds one row and the last
//! piece in memory, never the table. Lines may end as on Unix, Windows or old Macs, cells may be quoted, and blank lines are
//! dropped. Refuses what is not UTF-8, and a row of more than a mebibyte.

/// The byte order marks of UTF-16 and UTF-32, in either order.
const WIDE: [&[u8]; 3] = [b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"];

/// A longer row is no row of a table, but a file of another kind.
const LONGEST_ROW: usize = 1 << 20;

/// A quote that is not closed within as many bytes is a part of the text.
const LONGEST_QUOTED: usize = 64 << 10;

/// A row that is not blank, with the number of its first line, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) cells: Vec<String>,
}

/// Reads a table piece by piece: [`Reader::push`] a piece, take its rows with [`Reader::next_row`], and at the end those that
/// were waiting for more.
#[derive(Debug)]
pub(super) struct Reader {
    /// Text that was pushed; the part before `at` is read.
    text: String,
    at: usize,
    /// The first bytes of a character whose others have not come.
    unfinished: Vec<u8>,
    /// Number of the next line.
    line: usize,
    begun: bool,
    /// With less unread text, the next row is not complete.
    row_needs: usize,
}

impl Default for Reader {
    fn default() -> Self {
        Self { text: String::new(), at: 0, unfinished: Vec::new(), line: 1, begun: false, row_needs: 0 }
    }
}

impl Reader {
    /// Takes the next bytes of the file; the message where they are in another encoding.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let is_first = !self.begun && self.text.is_empty();
        // Without a mark, UTF-16 shows by the zero bytes of its letters.
        if (is_first && WIDE.iter().any(|mark| bytes.starts_with(mark))) || bytes.contains(&0) {
            return Err("is UTF-16 (Excel's \"Unicode text\"): save it as UTF-8, with tabs between the columns");
        }
        if self.at > self.text.len() / 2 {
            self.text.drain(..self.at);
            self.at = 0;
        }
        self.unfinished.extend_from_slice(bytes);
        let n_valid = match std::str::from_utf8(&self.unfinished) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err("is not UTF-8: save it as UTF-8, with tabs between the columns"),
        };
        self.text.push_str(&String::from_utf8_lossy(&self.unfinished[..n_valid]));
        self.unfinished.drain(..n_valid);
        Ok(())
    }

    /// The next row; `None` where it is not complete yet. With `ended`, nothing more will be pushed, and `None` is the end of
    /// the table. The message where the row cannot be read.
    pub(super) fn next_row(&mut self, ended: bool) -> Result<Option<Row>, String> {
        if ended && !self.unfinished.is_empty() {
            return Err("is not UTF-8, or was cut off: save it as UTF-8, with tabs between the columns".to_owned());
        }
        loop {
            let mut rest = &self.text[self.at..];
            if !ended && (rest.len() < self.row_needs || rest.is_empty()) || ended && rest.is_empty() {
                return Ok(None);
            }
            if !self.begun {
                rest = rest.trim_start_matches('\u{feff}');
                self.at = self.text.len() - rest.len();
                self.begun = true;
            }
            let Some((cells, n_bytes)) = row(rest, ended) else {
                if rest.len() > LONGEST_ROW + LONGEST_QUOTED {
                    return Err(too_long(self.line));
                }
                self.row_needs = 2 * rest.len();
                return Ok(None);
            };
            if n_bytes > LONGEST_ROW {
                return Err(too_long(self.line));
            }
            let line = self.line;
            self.line += line_ends(&rest[..n_bytes]);
            self.at += n_bytes;
            self.row_needs = 0;
            if cells.iter().any(|cell| !cell.is_empty()) {
                return Ok(Some(Row { line, cells }));
            }
        }
    }
}

fn too_long(line: usize) -> String {
    format!(
        "line {line} begins a row of more than {LONGEST_ROW} bytes, the most that is read: write one subject a line, with tabs \
         between the columns"
    )
}

/// The cells of the first row, and its length with the line end; `None` where the text may end before the row does.
fn row(text: &str, ended: bool) -> Option<(Vec<String>, usize)> {
    let mut rest = text;
    let mut cells = Vec::new();
    loop {
        let (cell, after) = cell(rest, ended)?;
        cells.push(cell);
        rest = after;
        match rest.strip_prefix('\t') {
            Some(next) => rest = next,
            None => break,
        }
    }
    if !ended && (rest.is_empty() || rest == "\r") {
        return None;
    }
    if !rest.is_empty() {
        rest = rest.strip_prefix("\r\n").unwrap_or_else(|| &rest[1..]);
    }
    Some((cells, text.len() - rest.len()))
}

/// The first cell, and what follows it: nothing, a tab or a line end. `None` as in [`row`].
fn cell(text: &str, ended: bool) -> Option<(String, &str)> {
    match quoted(text, ended) {
        Quoted::Cell(cell, after) => return Some((trimmed(&cell), after)),
        Quoted::Unknown => return None,
        Quoted::No => {}
    }
    let end = match text.find(['\t', '\n', '\r']) {
        None if !ended => return None,
        end => end.unwrap_or(text.len()),
    };
    Some((trimmed(&text[..end]), &text[end..]))
}

/// Whether a text begins with a cell in quotes, which may hold tabs, line ends and doubled quotes.
enum Quoted<'a> {
    /// It does: the cell, and what follows it.
    Cell(String, &'a str),
    /// The quote is part of the text: it is not closed, or more text follows the closing one.
    No,
    /// More of the text decides.
    Unknown,
}

fn quoted(text: &str, ended: bool) -> Quoted<'_> {
    let window = &text[..text.floor_char_boundary(LONGEST_QUOTED)];
    let is_cut = window.len() < text.len();
    let not_closed = || if ended || is_cut { Quoted::No } else { Quoted::Unknown };
    let quote = window.trim_start_matches(' ');
    if quote.is_empty() {
        return not_closed();
    }
    let Some(inner) = quote.strip_prefix('"') else { return Quoted::No };
    let (mut at, mut cell) = (0, String::new());
    loop {
        let Some(quote) = inner[at..].find('"').map(|found| at + found) else { return not_closed() };
        cell.push_str(&inner[at..quote]);
        let after = &inner[quote + 1..];
        if after.starts_with('"') {
            cell.push('"');
            at = quote + 2;
            continue;
        }
        let after = after.trim_start_matches(' ');
        return match after.chars().next() {
            Some('\t' | '\n' | '\r') => Quoted::Cell(cell, &text[window.len() - after.len()..]),
            None if ended && !is_cut => Quoted::Cell(cell, ""),
            None => not_closed(),
            Some(_) => Quoted::No,
        };
    }
}

fn trimmed(cell: &str) -> String {
    cell.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}')).to_owned()
}

fn line_ends(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |(at, byte): (usize, &u8)| *byte == b'\n' || (*byte == b'\r' && bytes.get(at + 1) != Some(&b'\n'));
    bytes.iter().enumerate().filter(|&at| ends(at)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of a table that comes in pieces of `n` bytes.
    fn read(bytes: &[u8], n: usize) -> Result<Vec<Row>, String> {
        let (mut reader, mut rows) = (Reader::default(), Vec::new());
        for piece in bytes.chunks(n) {
            reader.push(piece)?;
            while let Some(row) = reader.next_row(false)? {
                rows.push(row);
            }
        }
        while let Some(row) = reader.next_row(true)? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// The same rows, whatever the pieces are.
    fn rows(text: &str) -> Vec<Row> {
        let whole = read(text.as_bytes(), text.len().max(1)).unwrap();
        for n in 1..9 {
            assert_eq!(read(text.as_bytes(), n).unwrap(), whole, "pieces of {n} bytes");
        }
        whole
    }

    fn cells(text: &str) -> Vec<Vec<String>> {
        rows(text).into_iter().map(|row| row.cells).collect()
    }

    #[test]
    fn line_ends_of_every_system_end_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let table = ["\u{feff}a\tb", "1\t2", "", "3\t4"].join(end);
            assert_eq!(cells(&table), [["a", "b"], ["1", "2"], ["3", "4"]], "{end:?}");
            assert_eq!(rows(&table).iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 4], "{end:?}");
        }
    }

    #[test]
    fn quotes_hold_tabs_line_ends_and_quotes_but_a_lone_quote_is_text() {
        let table = "\"a\"\t\"b \"\"c\"\"\"\n\"one\ntwo\"\t\"x\ty\"\n5\" tall\t\"n\"o\n\"open\tz\n";
        assert_eq!(cells(table), [["a", "b \"c\""], ["one\ntwo", "x\ty"], ["5\" tall", "\"n\"o"], ["\"open", "z"]]);
        assert_eq!(rows(table).iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 4, 5]);
    }

    #[test]
    fn blanks_around_cells_and_blank_lines_are_dropped() {
        assert_eq!(cells(" a \tb\u{a0}\t \n\n\t\n1\t\t2"), [["a", "b", ""], ["1", "", "2"]]);
    }

    #[test]
    fn other_encodings_are_refused_with_what_to_do() {
        let utf16: Vec<u8> = "a\tb".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [b"\xff\xfe".as_slice(), &utf16].concat();
        for bytes in [utf16, marked] {
            assert!(read(&bytes, 64).unwrap_err().contains("UTF-16"));
        }
        for latin1 in [b"M\xfcller".as_slice(), b"a\tM\xfc"] {
            assert!(read(latin1, 64).unwrap_err().contains("save it as UTF-8"));
        }
    }

    #[test]
    fn a_row_without_end_is_refused_and_a_long_open_quote_is_text() {
        let endless = "x".repeat(2 * LONGEST_ROW);
        for n in [8 << 10, endless.len()] {
            assert!(read(endless.as_bytes(), n).unwrap_err().contains("line 1 begins a row of more than"));
        }
        let open = format!("a\t\"b\n{}c\td\"\n", "x\ty\n".repeat(LONGEST_QUOTED / 4));
        for n in [8 << 10, open.len()] {
            let read = read(open.as_bytes(), n).unwrap();
            assert_eq!((&read[0].cells[1], read.len()), (&"\"b".to_owned(), 2 + LONGEST_QUOTED / 4));
        }
    }
}
