//! The token that the sidecar makes for its pod: in a file that it shares with the app's containers and nobody else.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Bytes of randomness.
const BYTES: usize = 32;
/// Whoever the file is mounted for may read it: apps run as any user. Nobody may write.
const MODE: u32 = 0o444;

/// The token in a file: one that an earlier start of this pod's sidecar made, which the app may have read by now, or
/// else a new one of 256 random bits, in hexadecimal and without an end of line. The file is there with all it is to
/// hold or not at all.
///
/// # Errors
/// When it cannot be written, or there are no random numbers.
pub(crate) fn keep_or_make(file: &Path) -> io::Result<String> {
    match fs::read_to_string(file) {
        Ok(text) if is_token(&text) => return Ok(text),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    let text = bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    let unfinished = file.with_added_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    io::Write::write_all(
        &mut options.write(true).create_new(true).mode(MODE).open(&unfinished)?,
        text.as_bytes(),
    )?;
    // The mode that a file is made with is less what the process's umask takes away.
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(MODE))?;
    fs::rename(&unfinished, file)?;
    Ok(text)
}

fn is_token(text: &str) -> bool {
    text.len() == 2 * BYTES && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
