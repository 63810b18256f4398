//! The command line.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, CommandFactory, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use damselfly_transport::local::{Code, Failure};

use crate::units::{parse_duration, parse_rate};

const MAX_CID_BYTES: usize = 1024;
const MAX_TAG_BYTES: usize = 256;
/// Of a message that repeats a long argument, so much is shown of its beginning and of its end.
const SHOWN_CHARS: (usize, usize) = (80, 160);

/// An option that differs by more letters is another one.
const MISSPELLED_MAX: usize = 2;

/// Import files on one host, export them on any other.
#[derive(Debug, Parser)]
#[command(name = "dfcache", version, after_help = after_help(), max_term_width = 100)]
pub struct Args {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// Whether the run has anything to write to stdout.
    pub fn writes_stdout(&self) -> bool {
        let to_file = matches!(&self.command, Command::Export(export) if !export.is_stdout());
        self.global.json || !to_file
    }
}

/// The options of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The daemon's socket [env: DFCACHE_SOCKET] [default: $XDG_RUNTIME_DIR/damselfly/dfdaemon.sock,
    /// else /run/damselfly/dfdaemon.sock]
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Write one JSON object to stdout, also for errors (to stderr with `export -O -`, and where stdout fails)
    #[arg(long, global = true)]
    pub json: bool,
    /// Total time, such as 90s [default: none; but 30 s without progress end a transfer]
    #[arg(long, global = true, value_name = "DUR", value_parser = parse_duration, allow_hyphen_values = true)]
    pub timeout: Option<Duration>,
    /// No progress bar and no summary
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// No progress bar
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// Transfer at most this fast, such as 64MiB/s
    #[arg(long, global = true, value_name = "SIZE/s", value_parser = parse_rate, allow_hyphen_values = true)]
    pub rate_limit: Option<u64>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring a file into the cluster, and print its cid
    Import(Import),
    /// Show what is known of a file
    Stat(Named),
    /// Write a file's content here, from this host or from others
    Export(Export),
    /// Delete a file in the whole cluster
    Delete(Named),
    /// List what this host holds
    Ls(Ls),
    /// Is the daemon up, a member of a cluster, and in touch with its schedulers?
    #[command(after_help = "Exits 0 when all is well, 4 without a daemon, 8 when it is not a member \
                            or reaches no scheduler.")]
    Health,
    /// Print a completion script
    #[command(
        after_help = "Examples:\n  dfcache completions bash > ~/.local/share/bash-completion/completions/dfcache"
    )]
    Completions {
        /// For this shell
        shell: Shell,
    },
}

impl Command {
    /// As it is typed.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Import(_) => "import",
            Self::Stat(_) => "stat",
            Self::Export(_) => "export",
            Self::Delete(_) => "delete",
            Self::Ls(_) => "ls",
            Self::Health => "health",
            Self::Completions { .. } => "completions",
        }
    }
}

/// `dfcache import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The cid may be any name. A digest (sha256:<hex>, blake3:<hex>, or a CIDv1 raw with one \
of these) is checked against the bytes. Only bytes are kept: mode bits, owner and modification time are not, so pack \
with tar what needs them.\n\nExamples:\n  \
dfcache import model.bin                    # prints the content ID\n  \
dfcache import -i models/7b -t v2 model.bin\n  \
cid=$(tar c src | dfcache import -)")]
pub struct Import {
    /// The file's name in the cluster [default: its content ID]
    #[arg(short = 'i', long, value_parser = parse_cid)]
    pub cid: Option<String>,
    /// Second part of the name
    #[arg(short, long, default_value = "", hide_default_value = true, value_parser = parse_tag)]
    pub tag: String,
    /// Every host that has not pinned it forgets it after this time, such as 2days; imported again under the same name,
    /// it stays until the later end
    #[arg(long, value_name = "DUR", value_parser = parse_duration, allow_hyphen_values = true)]
    pub ttl: Option<Duration>,
    /// Keep it on this host, past its --ttl and when room is short
    #[arg(long)]
    pub pin: bool,
    /// Hosts that are to hold it; more than 1 is not built yet
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub replicas: Option<u32>,
    /// A regular file, or - for stdin
    #[arg(value_name = "PATH|-", value_hint = ValueHint::FilePath)]
    pub path: PathBuf,
}

/// `dfcache stat` and `dfcache delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
dfcache stat -i models/7b -t v2     # exits 0 when found, 3 when not\n  \
dfcache stat -l -i models/7b        # only this host\n  \
dfcache delete -i models/7b -t v2   # in the whole cluster; exits 0 also when nothing was there\n  \
dfcache delete -l -i models/7b      # only the copy of this host")]
pub struct Named {
    /// The file's name in the cluster
    #[arg(short = 'i', long, value_parser = parse_cid)]
    pub cid: String,
    /// Second part of the name
    #[arg(short, long, default_value = "", hide_default_value = true, value_parser = parse_tag)]
    pub tag: String,
    /// Only this host
    #[arg(short, long)]
    pub local: bool,
}

/// `dfcache export`.
#[derive(Debug, clap::Args)]
#[command(
    group(ArgGroup::new("target").required(true).args(["output", "path"])),
    after_help = "The file is written beside its target and then renamed: when the export fails, there is no \
file, and an old one is untouched. It is verified, but not synced to disk; the copy in the store is.\n\nExamples:\n  \
dfcache export -i models/7b -t v2 model.bin\n  \
dfcache export -i models/7b -t v2 -f -O model.bin   # replaces an existing file\n  \
dfcache export -i src.tar -O - | tar x"
)]
pub struct Export {
    /// The file's name in the cluster
    #[arg(short = 'i', long, value_parser = parse_cid)]
    pub cid: String,
    /// Second part of the name
    #[arg(short, long, default_value = "", hide_default_value = true, value_parser = parse_tag)]
    pub tag: String,
    /// Only the copy of this host
    #[arg(short, long)]
    pub local: bool,
    /// Replace an existing file; with `-O -`, write to a terminal
    #[arg(short, long)]
    pub force: bool,
    /// Where to write it; - for stdout
    #[arg(short = 'O', long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// The same without -O
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub path: Option<PathBuf>,
}

impl Export {
    /// Where to write it.
    pub fn target(&self) -> &Path {
        // One of them is there: they are a required group.
        self.output.as_deref().or(self.path.as_deref()).unwrap_or(Path::new("-"))
    }

    /// Whether the bytes go to stdout.
    pub fn is_stdout(&self) -> bool {
        self.target() == Path::new("-")
    }
}

/// `dfcache ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dfcache ls\n  dfcache ls -t v2 --json")]
pub struct Ls {
    /// Only entries with this tag
    #[arg(short, long, value_parser = parse_tag)]
    pub tag: Option<String>,
}

/// What the arguments turned out to be.
#[derive(Debug)]
pub enum Parsed {
    /// A command to run.
    Run(Box<Args>),
    /// Help or version, asked for.
    Print(String),
    /// Wrong usage.
    Wrong {
        /// Why.
        failure: Failure,
        /// To be told as an object.
        json: bool,
    },
}

/// Reads the arguments, the first being the program's name.
pub fn parse(arguments: &[OsString]) -> Parsed {
    let json = arguments.iter().take_while(|one| *one != "--").any(|one| one == "--json");
    let error = match Args::try_parse_from(arguments) {
        Ok(args) => match refuse_unbuilt(&args.command) {
            Ok(()) => return Parsed::Run(Box::new(args)),
            Err(failure) => return Parsed::Wrong { failure, json },
        },
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Print(error.render().to_string()),
        _ => Parsed::Wrong { failure: wrong_usage(&error, arguments), json },
    }
}

/// Options that INTERFACE names and that are not there yet are refused by name, never ignored.
fn refuse_unbuilt(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Import(Import { replicas: Some(2..), .. }) => {
            Err(Failure::new(Code::Usage, "--replicas with more than 1 is not built yet")
                .with_hint("leave it out; every host that exports the file becomes a source of it"))
        }
        _ => Ok(()),
    }
}

/// One line of clap's page: its first paragraph; and its tip as the hint.
fn wrong_usage(error: &clap::Error, arguments: &[OsString]) -> Failure {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::new(Code::Usage, "no command given").with_hint("see `dfcache --help`");
    }
    let page = error.render().to_string();
    let paragraph = page.split("\n\n").next().unwrap_or_default();
    let line = paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let message = line.strip_prefix("error: ").unwrap_or(&line);
    // A misspelled option is hardly ever meant as a value.
    let is_of_use = |tip: &&str| !tip.starts_with("to pass '");
    let tip = page.lines().find_map(|line| line.trim().strip_prefix("tip: ")).filter(is_of_use);
    // "Usage: dfcache export [OPTIONS] …"
    let usage = page.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("dfcache");
    let words = usage.split(' ').take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
    let command = words.collect::<Vec<_>>().join(" ");
    let hint =
        tip.map(str::to_owned).or_else(|| misspelled(error, &command)).or_else(|| unnamed(error, &command, arguments));
    let hint = hint.unwrap_or_else(|| format!("see `{command} --help`"));
    Failure::new(Code::Usage, shortened(message)).with_hint(hint)
}

/// How a name is given, for a command that needs one and got none.
fn unnamed(error: &clap::Error, command: &str, arguments: &[OsString]) -> Option<String> {
    let needs_name = matches!(command, "dfcache stat" | "dfcache delete" | "dfcache export");
    let gives_name = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text.starts_with("--cid") || text.starts_with('-') && !text.starts_with("--") && text.contains('i')
    };
    if !needs_name || arguments.iter().any(gives_name) {
        return None;
    }
    // The name itself; but of two words after `export` the first one is the name, and clap refuses the second.
    let name = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(refused))
            if error.kind() == ErrorKind::UnknownArgument && !command.ends_with("export") =>
        {
            shortened(refused)
        }
        _ => "NAME".to_owned(),
    };
    Some(format!("a name is given with -i: `{command} -i {name}`"))
}

/// The option of `command` that a misspelled one was probably meant to be.
fn misspelled(error: &clap::Error, command: &str) -> Option<String> {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return None };
    let option = argument.strip_prefix("--").filter(|_| error.kind() == ErrorKind::UnknownArgument)?;
    let all = Args::command();
    let commands =
        std::iter::once(&all).chain(all.find_subcommand(command.strip_prefix("dfcache ").unwrap_or_default()));
    let options = commands.flat_map(|command| command.get_arguments()).filter_map(|argument| argument.get_long());
    let near = options.map(|long| (strsim::damerau_levenshtein(option, long), long)).min()?;
    (near.0 <= MISSPELLED_MAX).then(|| format!("did you mean --{}? see `{command} --help`", near.1))
}

/// Clap repeats the argument first and says what is wrong with it last.
fn shortened(message: &str) -> String {
    let (begin, end) = SHOWN_CHARS;
    let length = message.chars().count();
    if length <= begin + end {
        return message.to_owned();
    }
    message.chars().take(begin).chain(['…']).chain(message.chars().skip(length - end)).collect()
}

/// The completion script of a shell.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "dfcache", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn parse_cid(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_CID_BYTES => Ok(text.to_owned()),
        length => Err(format!("a cid has 1 to {MAX_CID_BYTES} bytes, this one has {length}")),
    }
}

fn parse_tag(text: &str) -> Result<String, String> {
    match text.len() {
        0..=MAX_TAG_BYTES => Ok(text.to_owned()),
        length => Err(format!("a tag has at most {MAX_TAG_BYTES} bytes, this one has {length}")),
    }
}

fn after_help() -> String {
    let mut text = String::from("Exit codes:\n    0  done\n");
    for code in Code::ALL {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {:>3}  {}", code.exit(), code.meaning());
    }
    text.push_str(
        "\nExamples:\n  dfcache import -i models/7b model.bin    # on one host\n  \
         dfcache export -i models/7b model.bin    # on any other\n\n\
         Environment:\n  OTEL_EXPORTER_OTLP_ENDPOINT  a collector of traces (OTLP/gRPC) that gets a span of the command\n  \
         TRACEPARENT                  the span that the command is a part of\n\n\
         `dfcache COMMAND --help` says more about each.",
    );
    text
}
