//! `.bidsignore`: paths that a dataset's own authors exclude from it, in the syntax of `.gitignore`.
//!
//! Takes the file's text; says of a path below the root whether it is ignored. A line that is no pattern is skipped, as git
//! does. The crate `ignore` was tried: it reads braces as alternatives and an open `[` as text, which git does not.

use globset::{GlobBuilder, GlobMatcher};

/// The patterns of a `.bidsignore`, in its order.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    glob: GlobMatcher,
    /// `!pattern`: takes back what an earlier pattern ignored.
    negated: bool,
    /// `pattern/`: matches folders alone.
    folders_only: bool,
}

impl Ignore {
    /// Reads the text of the file.
    pub(super) fn parse(text: &str) -> Self {
        Self { patterns: text.trim_start_matches('\u{feff}').lines().filter_map(Pattern::parse).collect() }
    }

    /// Whether the file at `uri` is ignored: it, or a folder above it. The last pattern that matches decides.
    pub(super) fn ignores(&self, uri: &str) -> bool {
        let decides = |path: &str, is_folder: bool| {
            let matching = |pattern: &&Pattern| (is_folder || !pattern.folders_only) && pattern.glob.is_match(path);
            self.patterns.iter().rev().find(matching).is_some_and(|pattern| !pattern.negated)
        };
        let folder_ends = uri.match_indices('/').map(|(at, _)| &uri[..at]);
        !self.patterns.is_empty()
            && (folder_ends.into_iter().any(|folder| decides(folder, true)) || decides(uri, false))
    }
}

impl Pattern {
    fn parse(line: &str) -> Option<Self> {
        // Trailing spaces count only after a backslash.
        let mut line = line.trim_end_matches(['\r', '\t', ' ']);
        let escaped;
        if line.ends_with('\\') {
            escaped = format!("{line} ");
            line = &escaped;
        }
        if line.starts_with('#') {
            return None;
        }
        let negated = line.starts_with('!');
        let line = line.strip_prefix('!').unwrap_or(line);
        let folders_only = line.ends_with('/');
        let line = line.strip_suffix('/').unwrap_or(line);
        // A slash at the start or in the middle ties the pattern to the root.
        let anchored = line.contains('/');
        let line = line.strip_prefix('/').unwrap_or(line);
        if line.is_empty() {
            return None;
        }
        // Braces are text in this syntax, and alternatives in a glob.
        let line = line.replace('{', "[{]").replace('}', "[}]");
        let pattern = if anchored { line } else { format!("**/{line}") };
        let glob = GlobBuilder::new(&pattern).literal_separator(true).backslash_escape(true).build().ok()?;
        Some(Self { glob: glob.compile_matcher(), negated, folders_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values by `git check-ignore --no-index`, for files at these paths.
    #[test]
    fn patterns_mean_what_they_mean_to_git() {
        for (text, ignored, kept) in [
            ("sub-02/\n", vec!["sub-02/anat/x.nii", "a/sub-02/x.nii"], vec!["sub-02", "sub-021/x.nii"]),
            ("*_rec-bad_T1w.nii.gz", vec!["sub-01/anat/sub-01_rec-bad_T1w.nii.gz"], vec!["sub-01_T1w.nii.gz"]),
            ("/extra", vec!["extra/x.nii", "extra"], vec!["sub-01/extra/x.nii"]),
            ("sub-01/anat", vec!["sub-01/anat/x.nii"], vec!["a/sub-01/anat/x.nii"]),
            ("**/tmp/*.nii", vec!["tmp/x.nii", "a/b/tmp/x.nii"], vec!["tmp/a/x.nii"]),
            ("a/**", vec!["a/x.nii", "a/b/x.nii"], vec!["b/a/x.nii"]),
            ("a/**/x.nii", vec!["a/x.nii", "a/b/c/x.nii"], vec!["b/a/x.nii"]),
            ("*.nii\n!keep.nii", vec!["x.nii", "a/x.nii"], vec!["keep.nii", "a/keep.nii"]),
            // A file below an ignored folder stays ignored.
            ("a/\n!a/keep.nii", vec!["a/keep.nii"], vec![]),
            ("# sub-01\n\n  \n\\#x\r\n\\!y\nz  ", vec!["#x", "!y", "z"], vec!["sub-01", "# sub-01"]),
            ("sub-0[12]*/\nsub-?x", vec!["sub-01/x.nii", "sub-02b/x.nii", "sub-1x"], vec!["sub-03/x.nii"]),
            ("{a,b}.nii", vec!["{a,b}.nii"], vec!["a.nii"]),
            ("x[", vec![], vec!["x", "x["]),
            ("a b\\ ", vec!["a b "], vec!["a b"]),
        ] {
            let ignore = Ignore::parse(text);
            for uri in ignored {
                assert!(ignore.ignores(uri), "{text:?} ignores {uri}");
            }
            for uri in kept {
                assert!(!ignore.ignores(uri), "{text:?} keeps {uri}");
            }
        }
        assert!(!Ignore::default().ignores("x.nii"));
    }
}
