//! Tables as spreadsheets and other programs save them: cells separated by tabs.
//!
//! Takes the bytes of a `.tsv`; gives its rows of trimmed cells. Lines may end as on Unix, Windows or old Macs, cells may
//! be quoted, and blank lines are dropped. Refuses what is not UTF-8.

/// The byte order marks of UTF-16 and UTF-32, in either order.
const WIDE: [&[u8]; 3] = [b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"];

/// A row that is not blank, with the number of its first line, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) cells: Vec<String>,
}

/// The text of a table; the message where it is in another encoding.
pub(super) fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    // Without a mark, UTF-16 shows by the zero bytes of its letters.
    if WIDE.iter().any(|mark| bytes.starts_with(mark)) || bytes.contains(&0) {
        return Err("is UTF-16 (Excel's \"Unicode text\"): save it as UTF-8, with tabs between the columns");
    }
    std::str::from_utf8(bytes).map_err(|_| "is not UTF-8: save it as UTF-8, with tabs between the columns")
}

/// The rows of a table.
pub(super) fn rows(text: &str) -> Vec<Row> {
    let mut rest = text.trim_start_matches('\u{feff}');
    let (mut rows, mut line) = (Vec::new(), 1);
    while !rest.is_empty() {
        let first = line;
        let mut cells = Vec::new();
        loop {
            let (cell, after) = cell(rest);
            line += line_ends(&rest[..rest.len() - after.len()]);
            cells.push(cell);
            rest = after;
            match rest.strip_prefix('\t') {
                Some(next) => rest = next,
                None => break,
            }
        }
        if !rest.is_empty() {
            rest = rest.strip_prefix("\r\n").unwrap_or_else(|| &rest[1..]);
            line += 1;
        }
        if cells.iter().any(|cell| !cell.is_empty()) {
            rows.push(Row { line: first, cells });
        }
    }
    rows
}

/// The first cell, and what follows it: nothing, a tab or a line end.
fn cell(text: &str) -> (String, &str) {
    if let Some((quoted, after)) = quoted(text) {
        return (trimmed(&quoted), after);
    }
    let end = text.find(['\t', '\n', '\r']).unwrap_or(text.len());
    (trimmed(&text[..end]), &text[end..])
}

/// A cell in quotes, which may hold tabs, line ends and doubled quotes. `None` where the quote is part of the text: it is
/// not closed, or more text follows the closing one.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inner = text.trim_start_matches(' ').strip_prefix('"')?;
    let (mut at, mut cell) = (0, String::new());
    loop {
        let quote = at + inner[at..].find('"')?;
        cell.push_str(&inner[at..quote]);
        let after = &inner[quote + 1..];
        if after.starts_with('"') {
            cell.push('"');
            at = quote + 2;
            continue;
        }
        let after = after.trim_start_matches(' ');
        return (after.is_empty() || after.starts_with(['\t', '\n', '\r'])).then_some((cell, after));
    }
}

fn trimmed(cell: &str) -> String {
    cell.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}')).to_owned()
}

fn line_ends(text: &str) -> usize {
    text.replace("\r\n", "\n").matches(['\n', '\r']).count()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(text(&bytes).unwrap_err().contains("UTF-16"));
        }
        assert!(text(b"M\xfcller").unwrap_err().contains("save it as UTF-8"));
    }
}
