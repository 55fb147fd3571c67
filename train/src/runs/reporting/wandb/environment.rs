//! The environment variables by which users of the W&B client set up a run.

use crate::error::{Error, Result};

/// Maximum length in characters of a run id, and of a tag, that the W&B client accepts (`wandb_settings.py`).
const LONGEST_ID: usize = 128;
const LONGEST_TAG: usize = 64;

/// The values of `WANDB_MODE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WandbMode {
    /// The run folder is written, and the user uploads it. This mode is the default, unlike in the W&B client,
    /// because this program uploads nothing by itself.
    #[default]
    Offline,
    /// The run folder is uploaded by `wandb sync` at the end of the run.
    Online,
    /// No run folder is written.
    Disabled,
}

/// The settings of a run in the W&B environment variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WandbEnvironment {
    /// `WANDB_MODE`: whether the run folder is written and uploaded.
    pub mode: WandbMode,
    /// `WANDB_RUN_ID`: the id of the run to which the steps belong.
    pub run_id: Option<String>,
    /// `WANDB_ENTITY`: the user or team that owns the run.
    pub entity: Option<String>,
    /// `WANDB_NAME`: the displayed name of the run.
    pub name: Option<String>,
    /// `WANDB_RUN_GROUP`: the group of runs.
    pub group: Option<String>,
    /// `WANDB_JOB_TYPE`: the type of the job.
    pub job_type: Option<String>,
    /// `WANDB_NOTES`: notes on the run.
    pub notes: Option<String>,
    /// `WANDB_TAGS`: the tags, which are separated by commas.
    pub tags: Vec<String>,
}

impl WandbEnvironment {
    /// Reads the environment variables of this process.
    ///
    /// # Errors
    /// A variable has a value that the client refuses.
    pub fn read() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let refused = |name: &str, value: &str, help: &str| Error::usage(name, format!("is {value:?}"), help);
        let mode = match variable("WANDB_MODE").as_deref() {
            None | Some("offline" | "dryrun") => WandbMode::Offline,
            Some("online" | "run" | "shared") => WandbMode::Online,
            Some("disabled") => WandbMode::Disabled,
            Some(other) => return Err(refused("WANDB_MODE", other, "give online, offline or disabled")),
        };
        let run_id = variable("WANDB_RUN_ID");
        let fits = |id: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            id.len() <= LONGEST_ID && !id.starts_with('.') && id.chars().all(allowed)
        };
        if let Some(id) = run_id.as_ref().filter(|id| !fits(id)) {
            return Err(refused("WANDB_RUN_ID", id, "give up to 128 letters, digits, - , _ and ."));
        }
        let tags: Vec<String> =
            variable("WANDB_TAGS").map_or_else(Vec::new, |tags| tags.split(',').map(|tag| tag.trim().into()).collect());
        if let Some(tag) = tags.iter().find(|tag| tag.is_empty() || tag.chars().count() > LONGEST_TAG) {
            return Err(refused("WANDB_TAGS", tag, "give tags of 1 to 64 characters with commas between them"));
        }
        Ok(Self {
            mode,
            run_id,
            entity: variable("WANDB_ENTITY"),
            name: variable("WANDB_NAME"),
            group: variable("WANDB_RUN_GROUP"),
            job_type: variable("WANDB_JOB_TYPE"),
            notes: variable("WANDB_NOTES"),
            tags,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<WandbEnvironment> {
        let find = |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.to_string());
        WandbEnvironment::from_variables(find)
    }

    #[test]
    fn values_are_those_that_the_client_takes() {
        let found = read(&[("WANDB_MODE", "online"), ("WANDB_TAGS", "a, b"), ("WANDB_RUN_ID", "my-run_1")]).unwrap();
        assert_eq!((found.mode, found.tags), (WandbMode::Online, vec!["a".to_string(), "b".to_string()]));
        assert_eq!(found.run_id.as_deref(), Some("my-run_1"));
        assert_eq!(read(&[("WANDB_NAME", "")]).unwrap(), WandbEnvironment::default());
        for (name, value) in
            [("WANDB_MODE", "on"), ("WANDB_RUN_ID", "a/b"), ("WANDB_RUN_ID", "../a"), ("WANDB_TAGS", "a,,b")]
        {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name) && !error.contains('\n'), "{error}");
        }
    }
}
