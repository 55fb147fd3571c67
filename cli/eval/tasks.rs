//! `reel eval tasks`: lists the benchmarks, or prints the task file of one.

use anyhow::Result;
use clap::Args;
use reel_eval::Task;
use reel_support::diagnostic::escape_controls;
use serde_json::json;

use crate::common::CommonOptions;
use crate::fail::usage_error;
use crate::output;

/// List the benchmarks, or print the task file of a benchmark, which can serve as the example for your own task file.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  reel eval tasks
  reel eval tasks mmvu")]
pub struct TasksArgs {
    /// Benchmark whose task file is printed
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl TasksArgs {
    pub(super) fn run(&self, common: &CommonOptions) -> Result<()> {
        let tasks = Task::built_in_tasks();
        if let Some(name) = &self.name {
            let known: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
            let Some(task) = tasks.iter().find(|task| task.name == *name) else {
                let help = format!("give one of {}", known.join(", "));
                return Err(usage_error(&escape_controls(name), "is not the name of a benchmark", help));
            };
            return output::print_text(task.built_in_file_text().unwrap_or_default());
        }
        if common.json {
            let describe = |task: &Task| {
                let layouts: Vec<&String> = task.layouts.iter().map(|layout| &layout.name).collect();
                json!({"name": task.name, "title": task.title, "version": task.version, "source": task.source,
                    "layouts": layouts})
            };
            return output::print_json(&tasks.iter().map(describe).collect::<Vec<_>>());
        }
        tasks.iter().try_for_each(|task| {
            output::print_line(format!("{:15} {:31} version {}  {}", task.name, task.title, task.version, task.source))
        })
    }
}
