//! Arguments → configuration → a node. No logic.

use std::process::ExitCode;

use holdfast::commands::table;
use holdfast::config::Invocation;
use holdfast::config::help_text;
use holdfast::config::parse_arguments;
use holdfast::node;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match parse_arguments(&args) {
        Ok(Invocation::Help) => print(&help_text()),
        Ok(Invocation::Version) => print(concat!("holdfast ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Invocation::Generate(what)) if what == "commands" => print(&table::readme_table()),
        Ok(Invocation::Generate(what)) => {
            Err(anyhow::anyhow!("--generate {what}: only `commands` can be generated"))
        }
        Ok(Invocation::CheckConfig(loaded)) => {
            loaded.warnings.iter().for_each(|warning| eprintln!("holdfast: warning: {warning}"));
            print("The configuration is good.\n")
        }
        Ok(Invocation::Run(loaded)) => node::run(loaded),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast: {error:#}");
            ExitCode::from(node::exit_status(&error))
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
