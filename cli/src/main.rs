//! `weft`: the one binary. Reads arguments, builds the runtime, turns the outcome into an exit code.
//!
//! What each command does stands in the module of its group; this file is the table of contents.

mod args;
mod client;
mod error;
mod identity;
mod observe;
mod output;
mod paths;
mod program;
mod resource;
mod rule;
mod run;

use std::process::ExitCode;

use crate::{
    args::{Cli, Command, usage},
    error::CliError,
    output::Output,
};

fn main() -> ExitCode {
    if let Some(told) = usage::check_for_token() {
        return told;
    }
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        Err(error) => return usage::tell(&error),
    };
    let output = Output::new(&cli.global);
    if cli.global.verbose > 0 {
        run::logs::start(&cli.global);
    }
    let outcome = dispatch(cli, &output);
    if let Some(age) = client::stale_for() {
        output.stale(age);
    }
    match outcome {
        Ok(code) => code,
        Err(error) => error.report(&output),
    }
}

fn dispatch(cli: Cli, output: &Output) -> Result<ExitCode, CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => run::demo::demo(&args, output),
        Command::Up(args) => run::up::up(&args, global, output),
        Command::Down(args) => run::up::down(&args, global, output),
        Command::Server(args) => run::server::server(&args, global, output),
        Command::Agent(args) => run::agent::agent(&args, global, output),
        Command::Run(args) => program::run::run(&args, global, output),
        Command::ExecProgram(args) => program::exec::exec(&args),
        Command::Call(args) => program::call::call(&args, global, output),
        Command::Token(args) => identity::token::token(&args, global, output),
        Command::User(args) => identity::person::user(&args, output),
        Command::Identity(args) => identity::show::identity(&args, global, output),
        Command::Apply(args) => resource::apply::apply(&args, global, output),
        Command::Get(args) => resource::get::get(&args, global, output),
        Command::Describe(args) => resource::describe::describe(&args, global, output),
        Command::Delete(args) => resource::delete::delete(&args, global, output),
        Command::Diff(args) => resource::diff::diff(&args, global, output),
        Command::History(args) => resource::history::history(&args, global, output),
        Command::Rollback(args) => resource::rollback::rollback(&args, global, output),
        Command::Confirm(args) => resource::confirm::confirm(&args, global, output),
        Command::Policy(args) => rule::policy::policy(&args, global, output),
        Command::Explain(args) => rule::explain::explain(&args, global, output),
        Command::Status(args) => observe::status::status(&args, global, output),
        Command::Version(args) => observe::version::version(&args, global, output),
        Command::Config(args) => run::config::config(&args, output),
        Command::Completion(args) => args::completion::completion(&args, output),
        Command::Man(args) => args::completion::man(&args, output),
    }
}
