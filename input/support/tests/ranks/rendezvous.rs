//! Tests of the rendezvous of ranks: stale files, connections of other programs, and mismatched processes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{join, short_timeouts, world};
use reel_support::ranks::{RankError, Ranks, Timeouts, World};

/// Joins a job with these processes, each in a thread that starts after a delay in milliseconds.
fn join_all(folder: &Path, worlds: Vec<(World, u64)>, timeouts: Timeouts) -> Vec<Result<Ranks, RankError>> {
    std::thread::scope(|scope| {
        let start = |(world, delay): (World, u64)| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(delay));
                join(world, folder, timeouts)
            })
        };
        let threads: Vec<_> = worlds.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Makes all ranks call a barrier and leave.
fn finish(ranks: Vec<Result<Ranks, RankError>>) {
    std::thread::scope(|scope| {
        for ranks in ranks {
            scope.spawn(|| {
                let ranks = ranks.expect("it joins");
                ranks.barrier("end").expect("a barrier");
                ranks.leave().expect("it leaves");
            });
        }
    });
}

/// Waits for the rendezvous file of the test's job and returns its path.
fn file(folder: &Path) -> PathBuf {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let names = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let mut files = names.filter(|path| path.extension().is_some_and(|end| end == "json"));
        if let Some(path) = files.next() {
            return path;
        }
        assert!(Instant::now() < deadline, "no rendezvous file");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the port and the token in a rendezvous file.
fn port_and_token(path: &Path) -> (u16, String) {
    let card: serde_json::Value = serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    (card["rank_0"]["port"].as_u64().expect("a port") as u16, card["token"].as_str().expect("a token").to_string())
}

/// Returns the rendezvous file of a job that was killed while it waited for ranks.
fn stale_rendezvous_file(folder: &Path) -> (PathBuf, serde_json::Value) {
    let error = std::thread::scope(|scope| {
        let host = scope
            .spawn(|| join(world(0, 2), folder, Timeouts { join: Duration::from_millis(200), ..short_timeouts() }));
        let path = file(folder);
        let card = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        (host.join().expect("no panic").expect_err("nobody comes"), path, card)
    });
    assert!(!error.1.exists(), "the file of rank 0 that gave up is left");
    (error.1, error.2)
}

#[test]
fn stale_files_are_not_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, card) = stale_rendezvous_file(folder.path());
    // One program accepts the connection and sends nothing; the other sends a wrong answer.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let talkative = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (silent_port, talkative_port) = (silent.local_addr().unwrap().port(), talkative.local_addr().unwrap().port());
    let talk = std::thread::spawn(move || {
        talkative.accept().expect("a connection").0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("written");
    });
    let with_port = |port: u16| {
        let mut card = card.clone();
        card["rank_0"]["port"] = port.into();
        card.to_string()
    };
    let stale =
        [card.to_string(), with_port(silent_port), with_port(talkative_port), "{".into(), card.to_string() + "x"];
    for text in stale {
        std::fs::write(&path, text).expect("written");
        // Ranks that find the stale file try it before rank 0 replaces it.
        let worlds = vec![(world(1, 3), 0), (world(0, 3), 150), (world(2, 3), 0)];
        finish(join_all(folder.path(), worlds, Timeouts { handshake: Duration::from_millis(300), ..short_timeouts() }));
        assert!(!path.exists(), "the file is left");
    }
    talk.join().expect("it was asked");
}

/// A file that another user can have written leads no rank to its author, and rank 0 replaces it. If rank 0 does not
/// come, the error names the file.
#[test]
fn a_file_that_another_user_can_have_written_is_not_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, mut card) = stale_rendezvous_file(folder.path());
    let author = TcpListener::bind("127.0.0.1:0").expect("a port");
    author.set_nonblocking(true).expect("set");
    card["rank_0"]["port"] = author.local_addr().expect("an address").port().into();
    let elsewhere = folder.path().join("elsewhere");
    std::fs::write(&elsewhere, card.to_string()).expect("written");
    let set_mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
    let spoil: [(&str, &dyn Fn()); 4] = [
        ("can be changed by other users (mode 0666); take this right from them (chmod go-w)", &|| set_mode(0o666)),
        ("is a symbolic link, which another user may have made; remove the link", &|| {
            std::fs::remove_file(&path).expect("removed");
            std::os::unix::fs::symlink(&elsewhere, &path).expect("a link");
        }),
        ("is not a regular file; remove it, or choose another folder", &|| {
            std::fs::remove_file(&path).expect("removed");
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).expect("a pipe");
        }),
        // Only root can give a file away.
        ("other user", &|| match std::os::unix::fs::chown(&path, Some(12_345), None) {
            Ok(()) => {}
            Err(_) => set_mode(0o622),
        }),
    ];
    for (why, spoil) in spoil {
        std::fs::write(&path, card.to_string()).expect("written");
        spoil();
        let timeouts = Timeouts { join: Duration::from_millis(200), ..short_timeouts() };
        let error = join(world(1, 2), folder.path(), timeouts).expect_err("rank 0 is missing").to_string();
        assert!(error.contains(&format!("{}: ", path.display())) && error.contains(why), "{error}");
        finish(join_all(folder.path(), vec![(world(1, 2), 0), (world(0, 2), 150)], short_timeouts()));
        assert!(!path.exists(), "the file is left");
    }
    assert!(author.accept().is_err(), "a rank has connected to the author of the file");
}

#[test]
fn a_folder_that_its_group_can_write_is_used_and_one_of_all_users_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let set_mode = |mode| std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(mode)).expect("set");
    for mode in [0o775, 0o2770, 0o1777] {
        set_mode(mode);
        finish(join_all(folder.path(), vec![(world(0, 2), 0), (world(1, 2), 0)], short_timeouts()));
    }
    set_mode(0o777);
    for rank in [0, 1] {
        let error = join(world(rank, 2), folder.path(), short_timeouts()).expect_err("it is refused").to_string();
        let wanted = "every user can replace files in this folder (mode 0777); take this right from them (chmod o-w)";
        assert!(error.starts_with(&format!("{}: {wanted}", folder.path().display())), "{error}");
    }
}

#[test]
fn a_live_job_with_another_token_is_not_joined() {
    // The file of one job contains the port of another job, which waits at the same time.
    let (one, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| join_all(other.path(), vec![(world(0, 2), 0), (world(1, 2), 900)], short_timeouts()));
        let mut card: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file(other.path())).expect("a file")).expect("JSON");
        card["token"] = "0123456789abcdef0123456789abcdef".into();
        let name = file(other.path());
        std::fs::write(one.path().join(name.file_name().expect("a name")), card.to_string()).expect("written");
        finish(join_all(one.path(), vec![(world(1, 2), 0), (world(0, 2), 300)], short_timeouts()));
        finish(waiting.join().expect("no panic"));
    });
}

#[test]
fn only_this_user_can_read_the_token() {
    let folder = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        let ranks =
            scope.spawn(|| join_all(folder.path(), vec![(world(0, 2), 0), (world(1, 2), 300)], short_timeouts()));
        let mode = std::fs::metadata(file(folder.path())).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        finish(ranks.join().expect("no panic"));
    });
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn missing_ranks_are_named_by_all_that_are_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let timeouts = Timeouts { join: Duration::from_millis(700), ..short_timeouts() };
    let worlds = vec![(world(0, 5), 0), (world(2, 5), 0), (world(4, 5), 0)];
    let errors = join_all(folder.path(), worlds, timeouts);
    for error in errors {
        let error = error.expect_err("ranks are missing");
        assert!(error.to_string().starts_with("ranks 1, 3 of 5 have not joined within 0.7 seconds; look "), "{error}");
        assert_eq!(error.rank, Some(1));
    }
    let error = join(world(3, 5), folder.path(), timeouts).expect_err("rank 0 is missing");
    let path = folder.path().join("ranks-");
    let wanted = format!("rank 3: has not found rank 0 of 5 within 0.7 seconds: there is no file {}", path.display());
    assert!(error.to_string().starts_with(&wanted), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
fn processes_that_do_not_fit_are_errors_of_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases: [(Vec<World>, &str); 3] = [
        (vec![world(0, 4), world(1, 4), world(2, 4), world(2, 4)], " has this rank, and process "),
        (vec![world(0, 4), world(1, 4), world(2, 3)], "counts 3 ranks, but rank 0 ("),
        (vec![world(0, 4), world(0, 4), world(1, 4)], " has this rank, and process "),
    ];
    for (worlds, wanted) in cases {
        // The last process comes after all others have joined.
        let last = worlds.len() - 1;
        let worlds = worlds.into_iter().enumerate().map(|(i, world)| (world, if i == last { 200 } else { 0 }));
        for joined in join_all(folder.path(), worlds.collect(), short_timeouts()) {
            let error = joined.expect_err("they do not fit").to_string();
            assert!(error.contains(wanted), "{error}\nnot {wanted}");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[cfg(feature = "mpi")]
#[test]
fn ranks_with_different_transports_are_errors_of_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let by_mpi = World { offers_mpi: true, ..world(2, 3) };
    for joined in join_all(folder.path(), vec![(world(0, 3), 0), (world(1, 3), 0), (by_mpi, 200)], short_timeouts()) {
        let error = joined.expect_err("they do not fit").to_string();
        let words = ["rank 2 (", "exchanges data by MPI, but rank 0 (", ") by sockets; start the same program"];
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let error = join(world(0, 2), Path::new("/nowhere/out"), short_timeouts()).expect_err("no such folder").to_string();
    assert!(
        error.starts_with("/nowhere/out/ranks-") && error.contains("/nowhere does not exist; create it"),
        "{error}"
    );
}

/// Messages of programs that do not belong to the job: nothing, other protocols, and beginnings of the right
/// protocol.
fn strange_messages(token: &str) -> Vec<Vec<u8>> {
    let token: Vec<u8> = (0..16).map(|i| u8::from_str_radix(&token[2 * i..2 * i + 2], 16).expect("hex")).collect();
    let right = |rest: &[u8]| [b"reelrnk1".as_slice(), &token, rest].concat();
    let json = |text: &str| right(&[&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat());
    vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 100_000],
        b"reelrnk".to_vec(),
        [b"reelrnk1".as_slice(), &[7; 16], &[2, 0, 0, 0], b"{}"].concat(),
        right(&[]),
        right(&u32::MAX.to_le_bytes()),
        right(&[2, 0, 0, 0]),
        json("{}"),
        json("null"),
        json(r#"{"from":9,"to":0,"size":3,"purpose":"Data"}"#),
        json(r#"{"from":0,"to":0,"size":3,"purpose":"Data"}"#),
        json(r#"{"from":1,"to":7,"size":3,"purpose":"Data"}"#),
    ]
}

/// Opens a connection to the port for each message, sends the message, and waits until all connections are closed.
fn send_to_port(port: u16, messages: &[Vec<u8>]) {
    let connect = |message: &Vec<u8>| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        let _ = stream.write_all(message);
        stream
    };
    let streams: Vec<_> = messages.iter().map(connect).collect();
    for (i, mut stream) in streams.into_iter().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        let mut answer = Vec::new();
        if let Err(e) = stream.read_to_end(&mut answer) {
            assert!(e.kind() == std::io::ErrorKind::ConnectionReset, "connection {i} is left open: {e}");
        }
        // Only a complete hello for this rank is acknowledged.
        let is_hello = messages[i].windows(7).any(|part| part == b"\"to\":0,");
        assert_eq!(answer, if is_hello { b"reelack1".as_slice() } else { b"" }, "connection {i}");
    }
}

#[test]
fn strangers_are_turned_away_before_and_after_all_are_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let timeouts = Timeouts { handshake: Duration::from_millis(300), ..short_timeouts() };
    std::thread::scope(|scope| {
        let ranks = scope
            .spawn(|| join_all(folder.path(), vec![(world(0, 3), 0), (world(1, 3), 900), (world(2, 3), 0)], timeouts));
        let (port, token) = port_and_token(&file(folder.path()));
        let messages = strange_messages(&token);
        send_to_port(port, &messages);
        let ranks: Vec<Ranks> = ranks.join().expect("no panic").into_iter().map(|r| r.expect("it joins")).collect();
        let knocking = scope.spawn(move || send_to_port(port, &messages));
        let work = |ranks: Ranks| {
            scope.spawn(move || {
                let begin = Instant::now();
                loop {
                    ranks.all_gather("work", &[1; 1000]).expect("bytes");
                    let go_on = begin.elapsed() < Duration::from_millis(600);
                    let vote = (ranks.rank() == 0).then(|| vec![u8::from(go_on)]);
                    if ranks.broadcast("go on", 0, vote).expect("bytes") == [0] {
                        break;
                    }
                }
                ranks.leave().expect("it leaves");
            })
        };
        let workers: Vec<_> = ranks.into_iter().map(work).collect();
        knocking.join().expect("all are turned away");
        workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    });
}

#[test]
fn a_process_that_comes_too_late_is_told_and_does_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        let ranks =
            scope.spawn(|| join_all(folder.path(), vec![(world(0, 2), 0), (world(1, 2), 300)], short_timeouts()));
        let path = file(folder.path());
        let card = std::fs::read(&path).expect("a file");
        let ranks = ranks.join().expect("no panic");
        // This simulates a process that read the file just before rank 0 removed it.
        std::fs::write(&path, card).expect("written");
        let error = join(world(1, 2), folder.path(), short_timeouts()).expect_err("its rank is there").to_string();
        assert!(error.starts_with("rank 1: process "), "{error}");
        finish(ranks);
    });
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 6, ..Default::default() })]

    /// For any bytes that other programs send, the job continues.
    #[test]
    fn random_bytes_at_the_port_do_no_harm(
        messages in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), 1..6),
        with_token: bool,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let timeouts = Timeouts { handshake: Duration::from_millis(150), ..short_timeouts() };
        std::thread::scope(|scope| {
            let ranks = scope.spawn(|| join_all(folder.path(), vec![(world(0, 2), 0), (world(1, 2), 100)], timeouts));
            let (port, token) = port_and_token(&file(folder.path()));
            let first = strange_messages(&token)[5].clone();
            let head = if with_token { first.as_slice() } else { &[] };
            let messages = messages.iter().map(|message| [head, message].concat());
            send_to_port(port, &messages.collect::<Vec<_>>());
            finish(ranks.join().expect("no panic"));
        });
    }
}
