//! Parses references to a model or a data set of the hub: `ORG/NAME`, `ORG/NAME@REVISION`,
//! `hf://datasets/ORG/NAME@REVISION/FILE`.

/// The branch that is used if no revision is given.
const DEFAULT_REVISION: &str = "main";

/// The start of a data set's address in the syntax of the library `huggingface_hub`.
const DATASET_SCHEME: &str = "hf://datasets/";

/// The kind of a repository of the hub: a model or a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl RepositoryKind {
    /// The word for this kind in addresses of the hub's API (between `api/` and the id) and in names of cache folders
    /// (before `--`).
    pub(crate) fn plural_name(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// The part of a file's address before the repository's id.
    pub(crate) fn address_prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// A repository of the hub, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// The kind of the repository.
    pub kind: RepositoryKind,
    /// The id of the repository: `ORG/NAME`.
    pub id: String,
    /// A branch, a tag, a reference such as `refs/pr/1`, or a commit in 40 hexadecimal digits.
    pub revision: String,
}

impl Repository {
    /// Parses `ORG/NAME` or `ORG/NAME@REVISION` as a model. `None` if the text has another form.
    pub fn parse_model(text: &str) -> Option<Self> {
        let (id, revision) = split_revision(text)?;
        Some(Self { kind: RepositoryKind::Model, id, revision })
    }

    /// The id, followed by the revision unless it is the default.
    pub fn name(&self) -> String {
        match self.revision.as_str() {
            DEFAULT_REVISION => self.id.clone(),
            revision => format!("{}@{revision}", self.id),
        }
    }

    /// Whether the revision is a commit, so that its files never change.
    pub(crate) fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// A data set of the hub, and which part of it to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetReference {
    /// The repository of the data set.
    pub repository: Repository,
    /// The data file; `None` for the whole data set.
    pub file: Option<String>,
    /// `@SPLIT`, `#CONFIG` or `#CONFIG@SPLIT`, with the same meaning as after the folder of a data set. Empty if none
    /// is given.
    pub selection: String,
}

impl DatasetReference {
    /// Parses one of these forms; `None` if the text has another form:
    ///
    /// - `ORG/NAME` with `@SPLIT`, `#CONFIG` or `#CONFIG@SPLIT` after it: as a folder of a data set, so that what
    ///   follows
    ///   `@` is a split and no revision;
    /// - `hf://datasets/ORG/NAME` with `@REVISION`, `/FILE`, and `#CONFIG` or `#CONFIG@SPLIT` after it. A `/` in the
    ///   revision is written `%2F`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, has_scheme) = match text.strip_prefix(DATASET_SCHEME) {
            Some(address) => (address, true),
            None => (text, false),
        };
        let selects = |c| c == '#' || (c == '@' && !has_scheme);
        let (address, selection) = address.split_at(address.find(selects).unwrap_or(address.len()));
        if selection.len() == 1 {
            return None;
        }
        let (id, revision, file) = if has_scheme {
            let mut parts = address.splitn(3, '/');
            let (org, name, file) = (parts.next()?, parts.next()?, parts.next());
            let (id, revision) = split_revision(&format!("{org}/{}", name.replace("%2F", "/")))?;
            (id, revision, file.filter(|file| !file.is_empty()))
        } else {
            let (id, revision) = split_revision(address)?;
            (id, revision, None)
        };
        if file.is_some_and(|file| !is_safe_path(file)) {
            return None;
        }
        let repository = Repository { kind: RepositoryKind::Dataset, id, revision };
        Some(Self { repository, file: file.map(str::to_string), selection: selection.to_string() })
    }
}

/// Splits `ORG/NAME@REVISION` into id and revision. The default revision is used if none is given.
fn split_revision(text: &str) -> Option<(String, String)> {
    let (id, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
    (is_id(id) && is_safe_path(revision)).then(|| (id.to_string(), revision.to_string()))
}

/// Tells whether a text is `ORG/NAME` with only the characters that the hub allows.
fn is_id(text: &str) -> bool {
    let parts = text.split('/').collect::<Vec<_>>();
    parts.len() == 2 && parts.iter().all(|part| !part.contains("..") && is_plain(part))
}

/// Tells whether a text has only letters, digits, `-`, `_` and `.`, and starts with neither `.` nor `-`.
fn is_plain(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && !text.starts_with(['.', '-']) && text.chars().all(allowed)
}

/// Tells whether a revision is a commit: 40 hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Tells whether a relative path stays below the folder to which it is joined, and names no hidden file.
pub(crate) fn is_safe_path(text: &str) -> bool {
    let safe = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
    text.split('/').all(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_an_id_and_a_revision() {
        let parse = |text| Repository::parse_model(text).map(|found| (found.id, found.revision));
        let of = |id: &str, revision: &str| Some((id.to_string(), revision.to_string()));
        assert_eq!(parse("Qwen/Qwen2.5-VL-3B-Instruct"), of("Qwen/Qwen2.5-VL-3B-Instruct", "main"));
        assert_eq!(parse("a/b@v1.0"), of("a/b", "v1.0"));
        assert_eq!(parse("a/b@refs/pr/1"), of("a/b", "refs/pr/1"));
        for not in ["", "a", "/a/b", "a/b/c", "../b", "a/..", "a b/c", "./a", "a/", "~/x", "a/b@", "a/b@../x", "a/b@/x"]
        {
            assert_eq!(parse(not), None, "{not}");
        }
    }

    #[test]
    fn data_sets_have_a_split_or_a_revision_and_a_file() {
        let parse = |text| {
            DatasetReference::parse(text).map(|found| {
                let Repository { id, revision, .. } = found.repository;
                (id, revision, found.file.unwrap_or_default(), found.selection)
            })
        };
        let of = |parts: [&str; 4]| Some(parts.map(str::to_string).into());
        for (text, wanted) in [
            ("a/b", of(["a/b", "main", "", ""])),
            ("a/b@test", of(["a/b", "main", "", "@test"])),
            ("a/b#c@test", of(["a/b", "main", "", "#c@test"])),
            ("hf://datasets/a/b", of(["a/b", "main", "", ""])),
            ("hf://datasets/a/b@v1", of(["a/b", "v1", "", ""])),
            ("hf://datasets/a/b@refs%2Fpr%2F1/x/y.jsonl", of(["a/b", "refs/pr/1", "x/y.jsonl", ""])),
            ("hf://datasets/a/b@v1#c@test", of(["a/b", "v1", "", "#c@test"])),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
        for not in ["a", "a/b/c", "a/b@", "a/b#", "./a/b", "hf://a/b", "hf://datasets/a", "hf://datasets/a/b/../c"] {
            assert_eq!(parse(not), None, "{not}");
        }
    }
}
