//! Reads the environment variables of the Hugging Face clients: the folder of the cache, the token, the address of
//! the hub, and whether downloads are allowed.

use std::path::{Path, PathBuf};

use crate::diagnostic::input;

/// A hub and its local cache.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The folder of the cache.
    pub cache: PathBuf,
    /// The address of the hub, without a slash at its end.
    pub(crate) endpoint: String,
    /// The access token of the user.
    pub(crate) token: Option<String>,
    /// Where the token was found. Used in messages.
    pub token_source: Option<String>,
    /// The environment variable or the option of the program that forbids downloads, if there is one.
    pub(crate) offline: Option<&'static str>,
    /// Whether the cache would be in the home folder, but the user has no home folder.
    pub lacks_home: bool,
}

impl Hub {
    /// Reads `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`, with the
    /// meaning that they have in `huggingface_hub`. Without `HF_TOKEN`, the token is read from the file that
    /// `hf auth login` writes.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir)
    }

    /// Does the same as [`Self::from_environment`], with other variables. `home_of_user` returns the user's home
    /// folder from the system's user database, for a process without `HOME`.
    pub(crate) fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        home_of_user: impl Fn() -> Option<PathBuf>,
    ) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home_of_user = || home_of_user().filter(|home| home.is_absolute());
        // Python keeps `~` in a path if there is no home folder, and so does this code.
        let home = || variable("HOME").map(PathBuf::from).or_else(home_of_user).unwrap_or_else(|| PathBuf::from("~"));
        let path = |name: &str| {
            variable(name).map(|value| {
                match value.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                    Some(rest) => home().join(rest.trim_start_matches('/')),
                    None => PathBuf::from(value),
                }
            })
        };
        let hub_home = path("HF_HOME")
            .unwrap_or_else(|| path("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let of_variable = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .into_iter()
            .find_map(|name| Some((variable(name)?.trim().to_string(), name.to_string())));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
        let token = of_variable.or_else(|| Some((read_token(&token_file)?, token_file.display().to_string())));
        let (token, token_source) = token.filter(|(token, _)| !token.is_empty()).unzip();
        let yes = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        let cache = cache.unwrap_or_else(|| hub_home.join("hub"));
        Self {
            lacks_home: cache.starts_with("~"),
            cache,
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token,
            token_source,
            offline: variable("HF_HUB_OFFLINE").is_some_and(yes).then_some("HF_HUB_OFFLINE"),
        }
    }

    /// Forbids downloads. `cause` is the reason for messages.
    pub fn without_downloads(self, cause: &'static str) -> Self {
        Self { offline: self.offline.or(Some(cause)), ..self }
    }
}

/// Returns the text of the token file, without surrounding white space.
fn read_token(file: &Path) -> Option<String> {
    Some(input::read_text(file, input::MAX_CONFIG_BYTES).ok()?.trim().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::hub::Repository;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Hub::from_variables(|name| variables.get(name).map(|value| value.to_string()), || None)
    }

    #[test]
    fn without_home_the_folder_is_that_of_the_user() {
        let of = |home: Option<&str>| Hub::from_variables(|_| None, || home.map(PathBuf::from));
        assert_eq!(of(Some("/home/u")).cache, Path::new("/home/u/.cache/huggingface/hub"));
        assert!(!of(Some("/home/u")).lacks_home);
        for none in [None, Some("")] {
            let hub = of(none);
            assert!(hub.lacks_home, "{hub:?}");
            let model = Repository::parse_model("org/name").unwrap();
            let refused = hub.download_if_missing(&model, &mut |_| {}).unwrap_err().to_string();
            assert!(refused.starts_with("HOME: is not set") && refused.contains("; set HOME, or HF_HOME"), "{refused}");
        }
        assert!(!hub(&[("HF_HOME", "/x")]).lacks_home);
    }

    #[test]
    fn folders_are_those_of_the_hugging_face_clients() {
        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(hub(variables).cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn token_is_that_of_the_variable_else_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(hub(&[("HF_HOME", home)]).token, None);
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let found = hub(&[("HF_HOME", home)]);
        assert_eq!(found.token.as_deref(), Some("hf_file"));
        assert_eq!(found.token_source, Some(format!("{home}/token")));
        let found = hub(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable")]);
        assert_eq!((found.token.as_deref(), found.token_source.as_deref()), (Some("hf_variable"), Some("HF_TOKEN")));
        let path = format!("{home}/other");
        std::fs::write(&path, "hf_other").unwrap();
        assert_eq!(hub(&[("HF_HOME", home), ("HF_TOKEN_PATH", &path)]).token.as_deref(), Some("hf_other"));
    }
}
