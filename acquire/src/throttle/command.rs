//! A program that is run: `PROGRAM ARGS... hold|slow|go`, with `KINESIN_REASON`, `KINESIN_RUN` and, for `slow`,
//! `KINESIN_FRACTION` in its environment.
//!
//! Exit 0: done. Exit 64 to 78 (the "no" of sysexits.h): refused, with the first line of its standard error as the reason. All
//! else is a failure and is tried again. After the time-out it is killed with all that it started.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

use super::{Request, Throttle, ThrottleError, first_line};

const NAME: &str = "command hook";
/// Most of its standard error that is kept, bytes.
const WORDS: usize = 4096;
/// How long its last words may take once it has ended; a grandchild may keep the pipe open for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Clone, Debug)]
pub struct CommandHook {
    program: PathBuf,
    args: Vec<String>,
    run: String,
}

impl CommandHook {
    /// `run` is the name of the acquisition, given along.
    pub fn new(program: PathBuf, args: Vec<String>, run: &str) -> Self {
        Self { program, args, run: run.into() }
    }

    fn start(&self, request: &Request) -> std::io::Result<Group> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg(request.wish.word());
        command
            .env("KINESIN_REASON", request.reason.replace('\0', " "))
            .env("KINESIN_RUN", self.run.replace('\0', " "));
        if let Some(fraction) = request.wish.fraction() {
            command.env("KINESIN_FRACTION", fraction.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        let child = command.spawn()?;
        Ok(Group { id: child.id(), child })
    }
}

impl Throttle for CommandHook {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn ask(&mut self, request: &Request) -> Result<String, ThrottleError> {
        let wish = request.wish;
        let program = self.program.display();
        let failed = |why| ThrottleError::Failed { hook: NAME, wish, why };
        let mut group = self.start(request).map_err(|e| failed(format!("cannot run {program}: {e}")))?;
        let (status, words) = group.end().await.map_err(|e| failed(format!("{program}: {e}")))?;
        let words = first_line(&words);
        match status.code() {
            Some(0) => Ok(format!("{program} exited 0")),
            Some(code @ 64..=78) => {
                Err(ThrottleError::Refused { hook: NAME, wish, why: format!("{program} exited {code}: {words}") })
            }
            _ => Err(failed(format!("{program} ended with {status}: {words}; wanted exit 0, or 64 to 78 to refuse"))),
        }
    }
}

/// The program with all that it started; killed when dropped before its end.
struct Group {
    child: Child,
    /// Its process group, until it has ended.
    id: Option<u32>,
}

impl Group {
    async fn end(&mut self) -> std::io::Result<(ExitStatus, Vec<u8>)> {
        let mut words = Vec::new();
        let Some(stderr) = self.child.stderr.take() else { return Ok((self.child.wait().await?, words)) };
        let status = {
            let hearing = hear(stderr, &mut words);
            tokio::pin!(hearing);
            let early = tokio::select! {
                status = self.child.wait() => Some(status?),
                () = &mut hearing => None,
            };
            match early {
                Some(status) => {
                    // What is lost here is only words.
                    drop(tokio::time::timeout(LAST_WORDS, hearing).await);
                    status
                }
                None => self.child.wait().await?,
            }
        };
        self.id = None;
        Ok((status, words))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(group) = self.id.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            // It may have ended this moment; then there is nobody to kill.
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
    }
}

/// Reads to the end and keeps the beginning: a program that says much is not made to wait.
async fn hear(mut from: ChildStderr, words: &mut Vec<u8>) {
    let mut part = [0; 1024];
    while let Ok(n @ 1..) = from.read(&mut part).await {
        words.extend(&part[..n.min(WORDS - words.len())]);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::throttle::Wish;

    async fn sh(script: &str, wish: Wish) -> Result<String, ThrottleError> {
        // The wish comes as $0.
        let mut hook = CommandHook::new("sh".into(), vec!["-c".into(), script.into()], "demo");
        hook.ask(&Request { wish, reason: "spool full".into() }).await
    }

    #[tokio::test]
    async fn the_program_is_given_the_command_the_reason_the_run_and_the_fraction() {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path().join("out").display().to_string();
        let script = format!("echo \"$0|$KINESIN_REASON|$KINESIN_RUN|$KINESIN_FRACTION\" > {out}");
        sh(&script, Wish::Slow(0.5)).await.expect("done");
        assert_eq!(std::fs::read_to_string(&out).expect("written"), "slow|spool full|demo|0.5\n");
    }

    #[tokio::test]
    async fn exit_64_to_78_refuses_with_its_words_and_any_other_fails() {
        let refused = sh("echo 'door open' >&2; exit 69", Wish::Hold).await;
        assert!(
            matches!(&refused, Err(ThrottleError::Refused { why, .. }) if why.contains("door open")),
            "{refused:?}"
        );
        for script in ["exit 1", "exit 79", "kill -9 $$"] {
            let failed = sh(script, Wish::Hold).await;
            assert!(matches!(failed, Err(ThrottleError::Failed { .. })), "{failed:?}");
        }
        let mut hook = CommandHook::new("/no/such/program".into(), vec![], "demo");
        let failed = hook.ask(&Request { wish: Wish::Go, reason: "".into() }).await;
        assert!(matches!(&failed, Err(ThrottleError::Failed { why, .. }) if why.contains("/no/such/program")));
    }

    #[tokio::test]
    async fn endless_words_and_a_child_left_behind_do_not_delay_the_answer() {
        // The child keeps the pipe of standard error open for longer than any test runs.
        let dir = tempfile::tempdir().expect("a folder");
        let id = dir.path().join("id").display().to_string();
        sh(&format!("sleep 600 & echo $! > {id}"), Wish::Hold).await.expect("done");
        kill(&std::fs::read_to_string(&id).expect("written"));
        // More than a pipe holds (64 KiB).
        sh("head -c 200000 /dev/zero >&2", Wish::Hold).await.expect("done");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().expect("a folder");
        let fifo = dir.path().join("fifo").display().to_string();
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("runs");
        assert!(made.success());
        // Both hold the writing end of the pipe: it ends when both are gone.
        let script = format!("exec 3> {fifo}; echo up >&3; sleep 600 & sleep 600");
        let asking = tokio::spawn(async move { sh(&script, Wish::Hold).await });
        let mut pipe = tokio::fs::File::open(&fifo).await.expect("opens");
        let mut up = [0; 3];
        pipe.read_exact(&mut up).await.expect("it runs");
        asking.abort();
        let mut rest = Vec::new();
        pipe.read_to_end(&mut rest).await.expect("both are gone");
        assert!(rest.is_empty());
    }

    fn kill(id: &str) {
        let killed = std::process::Command::new("kill").arg(id.trim()).status().expect("runs");
        assert!(killed.success());
    }
}
