//! A program of Rust's standard library alone. Its first argument says what it does: it copies its input, writes or
//! reads a file, or listens and echoes one connection. What goes wrong it tells; of its code 4 WASI 0.2 makes a 1.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match done(&args) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{args:?}: {e}");
            ExitCode::from(4)
        }
    }
}

fn done(args: &[&str]) -> io::Result<String> {
    match args {
        ["upper"] => Ok(io::read_to_string(io::stdin())?.to_uppercase()),
        ["write", path, text] => fs::write(path, text).map(|()| String::new()),
        ["append", path, text] => {
            let mut file = fs::OpenOptions::new().append(true).open(path)?;
            file.write_all(text.as_bytes()).map(|()| String::new())
        }
        ["read", path] => fs::read_to_string(path),
        ["remove", path] => fs::remove_file(path).map(|()| String::new()),
        ["folder", path] => fs::create_dir(path).map(|()| String::new()),
        ["echo", address] => echo(address),
        _ => Err(io::Error::other("upper, write, append, read, remove, folder or echo")),
    }
}

/// Says where it listens, and gives one connection back what it sends.
fn echo(address: &str) -> io::Result<String> {
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    let (mut connection, _) = listener.accept()?;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes)?;
    connection.write_all(&bytes)?;
    Ok(format!("{} bytes\n", bytes.len()))
}
