//! Tools that the model calls inside its answers, in rollouts and evaluations.
//!
//! ```text
//! prompt      system: # Tools … crop_video(start, end, fps) …   user: <video> When does the cup fall?
//! model       <tool_call>{"name": "crop_video", "arguments": {"start": 8, "end": 12}}</tool_call><|im_end|>
//! tools       <|im_start|>user <tool_response>The video from 8 s to 12 s: <video></tool_response><|im_end|> …
//! model       <answer>9.5</answer><|im_end|>
//! ```
//! The whole is one completion. Tokens that tools have written are context: they are never learned.
//! [`trajectory`] runs the loop; [`ToolSet`] answers single calls.

pub mod call;
pub mod content;
pub mod trajectory;
mod video;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reel_input::media::profile::{MediaOverrides, MediaProfile};
use reel_input::messages::{ContentPart, MediaSource, VideoPart, VideoSource};
use reel_input::tools::ToolRequest;
use reel_input::{Conversation, MediaOptions, ModelFolder};
use reel_samples::rewards::{ProgramLog, ToolProgram};
use reel_support::diagnostic::escape_controls;
use reel_support::error::MediaFailure;
use serde_json::{Map, Value, json};

use self::call::ToolCall;
use self::content::{AnsweredCall, LoadedAnswer, content_of_reply, load_answer};
use self::video::{VideoTool, no_frames_left};
use crate::error::{Error, Kind, Result};
use crate::options::ToolOptions;

/// The tools of a run.
#[derive(Debug)]
pub struct ToolSet {
    options: ToolOptions,
    /// How the images and videos of answers are loaded.
    media: MediaOptions,
    tools: Vec<(String, Source)>,
    programs: Vec<Mutex<ToolProgram>>,
    /// The tools as the chat template describes them to the model.
    definitions: Vec<Value>,
}

/// What answers the calls of a tool.
#[derive(Clone, Copy, Debug)]
enum Source {
    Video(VideoTool),
    /// The program with this index.
    Program(usize),
}

/// What tools know of the prompt.
#[derive(Clone, Debug, Default)]
pub struct CallContext {
    /// The files of the prompt's videos.
    pub videos: Vec<PathBuf>,
    /// The columns of the data row.
    pub row: Map<String, Value>,
}

impl CallContext {
    /// What tools know of a prompt with these messages and columns.
    ///
    /// # Errors
    /// A video of the prompt is not a file, so no tool can show parts of it.
    pub fn new(conversation: &Conversation, row: Map<String, Value>) -> Result<Self> {
        let file = |part: &ContentPart| match part {
            ContentPart::Video(VideoPart { source: VideoSource::File(MediaSource::Path(path)), .. })
                if !path.is_dir() =>
            {
                Some(Ok(path.clone()))
            }
            ContentPart::Video(part) => {
                let what = "is a video that is not a file, of which tools cannot show parts";
                Some(Err(Error::row(&*part.location, what, "give the path of a video file, or leave --tools out")))
            }
            _ => None,
        };
        Ok(Self { videos: conversation.media_parts().filter_map(file).collect::<Result<_>>()?, row })
    }
}

/// The error of a row whose prompt is a text, in a run with tools.
pub fn text_with_tools(location: &str) -> Error {
    let what = "has a text as its prompt, and the run has tools, which only a chat template describes";
    Error::row(location, what, "give chat messages, or leave --tools out")
}

impl ToolSet {
    /// Opens the tools of the options: starts the user's programs and asks them for their tools. `media` is how the
    /// prompts' images and videos are loaded. What the programs write to standard error goes to `log`.
    ///
    /// # Errors
    /// A tool is unknown, is described wrongly or has the name of another one; a program fails.
    pub fn open(options: &ToolOptions, media: &MediaOptions, log: &ProgramLog) -> Result<Self> {
        let timeout = Duration::from_secs_f64(options.tool_timeout);
        let (mut tools, mut definitions, mut programs) = (Vec::new(), Vec::new(), Vec::new());
        let mut user_programs = Vec::new();
        for name in &options.tools {
            match VideoTool::ALL.into_iter().find(|tool| tool.name() == name) {
                Some(tool) => {
                    tools.push((name.clone(), Source::Video(tool)));
                    definitions.push(tool.definition());
                }
                None if name.contains(':') => user_programs.push(ToolProgram::from_function(name, timeout)?),
                None => {
                    let names = VideoTool::ALL.map(VideoTool::name).join(", ");
                    let help = format!("give {names}, FILE.py:NAME or MODULE:NAME");
                    return Err(Error::usage("--tools", format!("{name:?} is no tool"), help));
                }
            }
        }
        if let Some(command) = &options.tool_command {
            user_programs.push(ToolProgram::from_command(command, timeout)?);
        }
        for program in user_programs {
            let mut program = program.with_log(log.clone());
            for definition in program.list(&AtomicBool::new(false))? {
                let name = definition["name"].as_str().unwrap_or_default().to_string();
                tools.push((name, Source::Program(programs.len())));
                definitions.push(definition);
            }
            programs.push(Mutex::new(program));
        }
        let definitions: Vec<Value> =
            definitions.into_iter().map(|function| json!({"type": "function", "function": function})).collect();
        let body = Map::from_iter([("tools".to_string(), definitions.clone().into())]);
        let location = if options.tools.is_empty() { "--tool-command" } else { "--tools" };
        ToolRequest::from_body(location, &body)?;
        Ok(Self { options: options.clone(), media: media_of_answers(media, timeout), tools, programs, definitions })
    }

    /// Opens the tools, if any, and ends their programs again, so that mistakes are found before a command creates or
    /// loads anything. With `verbose`, prints what the programs write to standard error.
    ///
    /// # Errors
    /// Those of [`ToolSet::open`], as mistakes in the options.
    pub fn check(options: Option<&ToolOptions>, verbose: bool) -> Result<()> {
        let Some(options) = options.filter(|options| options.are_given()) else { return Ok(()) };
        let print = |line: &str| reel_support::diagnostic::note!("tool: {}", escape_controls(line));
        let log = if verbose { ProgramLog::new(print) } else { ProgramLog::new(|_| {}) };
        Self::open(options, &MediaOptions::default(), &log).map(drop).map_err(|e| Kind::Usage.error(e.diagnostic))
    }

    /// The options of the tools.
    pub fn options(&self) -> &ToolOptions {
        &self.options
    }

    /// The tools as the chat template describes them to the model.
    pub fn definitions(&self) -> &[Value] {
        &self.definitions
    }

    /// Loads the content of a recorded answer again.
    ///
    /// # Errors
    /// A file has changed or is missing.
    pub fn load(&self, content: &[Value], model: &ModelFolder) -> Result<LoadedAnswer> {
        load_answer(content, model, &self.media)
    }

    /// Answers a call. The answer shows at most `max_frames` frames and images. Whatever is wrong with the call or its
    /// tool becomes a text that the model reads.
    ///
    /// # Errors
    /// `stop` is true; videos cannot be decoded on this machine.
    pub fn answer(
        &self,
        call: ToolCall,
        context: &CallContext,
        model: &ModelFolder,
        max_frames: usize,
        stop: &AtomicBool,
    ) -> Result<(AnsweredCall, LoadedAnswer)> {
        let ToolCall { name, arguments } = call;
        let told = match &arguments {
            Ok(arguments) => Value::Object(arguments.clone()),
            Err(_) => Value::Null,
        };
        let content = arguments.and_then(|arguments| self.run(&name, arguments, context, max_frames, stop));
        if stop.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        let loaded = match content {
            Ok(content) => match self.load(&content, model) {
                Ok(loaded) if loaded.frames > max_frames => {
                    Err(format!("the answer has {} frames; {}", loaded.frames, no_frames_left(max_frames)))
                }
                Ok(loaded) => Ok((content, loaded)),
                Err(e) if matches!(e.kind, Kind::Media(MediaFailure::Worker | MediaFailure::Stopped)) => return Err(e),
                Err(e) => Err(e.to_string()),
            },
            Err(what) => Err(what),
        };
        let is_error = loaded.is_err();
        let (content, loaded) = match loaded {
            Ok(answer) => answer,
            Err(what) => {
                let content = vec![json!({"type": "text", "text": format!("error: {what}")})];
                let loaded = self.load(&content, model)?;
                (content, loaded)
            }
        };
        let (frames, times) = (loaded.frames, loaded.times.clone());
        Ok((AnsweredCall { name, arguments: told, content, is_error, frames, times }, loaded))
    }

    fn run(
        &self,
        name: &str,
        arguments: Map<String, Value>,
        context: &CallContext,
        max_frames: usize,
        stop: &AtomicBool,
    ) -> std::result::Result<Vec<Value>, String> {
        match self.tools.iter().find(|(own, _)| own == name) {
            None => {
                let names: Vec<&str> = self.tools.iter().map(|(name, _)| &**name).collect();
                Err(format!("there is no tool {name:?}; the tools are {}", names.join(", ")))
            }
            Some((_, Source::Video(tool))) => tool.run(&arguments, &context.videos, self.media.profile, max_frames),
            Some((_, Source::Program(index))) => {
                let mut row = context.row.clone();
                row.insert("videos".into(), json!(context.videos));
                let request = json!({"tool": name, "arguments": arguments, "row": row});
                let mut program = self.programs[*index].lock().unwrap_or_else(PoisonError::into_inner);
                content_of_reply(program.call(&request, stop).map_err(|e| e.to_string())?)
            }
        }
    }
}

/// How the frames of answers are loaded: as those of prompts, but a call says which frames it shows. The profiles that
/// take a fixed number of frames have no rate, so videos then follow the rule of `qwen`, which has the same sizes.
fn media_of_answers(media: &MediaOptions, timeout: Duration) -> MediaOptions {
    let sizes = |all: MediaOverrides| MediaOverrides {
        nframes: None,
        fps: None,
        min_frames: None,
        max_frames: None,
        video_start: None,
        video_end: None,
        sample_fps: None,
        raw_fps: None,
        ..all
    };
    let mut media = media.clone();
    (media.overrides, media.trained) = (sizes(media.overrides), sizes(media.trained));
    media.decoder.program.timeout = media.decoder.program.timeout.min(timeout);
    if matches!(media.profile, MediaProfile::Uniform16 | MediaProfile::Stride1Fps) {
        media.profile = MediaProfile::Qwen;
    }
    media
}
