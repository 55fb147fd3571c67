//! The MPI library: the only file that calls it. Its functions are those of the crate `mpi`'s bindings, because the
//! safe requests of that crate must complete before their scope ends, and those of a rank that has ended never do.
//!
//! The library only gets memory that belongs to this file ([`Pending`]). If a job fails, the packets in flight are
//! never freed: the network may still write into them, and cancelling a receive can wait for the other process.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::Communicator;
use reel_diagnostic::Diagnostic;

use crate::error::{RankError, Result};
use crate::launch::World;
use crate::message::MAX_HEAD_BYTES;

/// The data in the first packet of a message, in bytes. With the head it is below the limit, 4 KiB with shared memory
/// in Open MPI, up to which a packet is sent without waiting for its receiver.
const FIRST_DATA_BYTES: usize = 2 << 10;

/// The packets of all ranks together that one rank has in flight, in bytes, about.
const IN_FLIGHT_BYTES: usize = 64 << 20;

/// The least and the most bytes of a packet.
const PACKET_BYTES: [usize; 2] = [64 << 10, 1 << 20];

/// Which packet of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// The one with the header.
    First = 1,
    Further = 2,
}

/// The sizes of packets. They are the same on all ranks, because sender and receiver divide a message independently.
#[derive(Clone, Copy, Debug)]
pub(super) struct PacketSizes {
    further: usize,
}

impl PacketSizes {
    /// Of a job of this number of ranks: the more, the smaller the packets, because each pair of ranks has some.
    pub fn of_job(ranks: usize) -> Self {
        let [least, most] = PACKET_BYTES;
        Self { further: (IN_FLIGHT_BYTES / (4 * ranks)).clamp(least, most) }
    }

    /// The most bytes of a packet.
    pub fn of(self, tag: Tag) -> usize {
        match tag {
            Tag::First => MAX_HEAD_BYTES + FIRST_DATA_BYTES,
            Tag::Further => self.further,
        }
    }
}

/// An error of an MPI function, by the text of the library.
#[derive(Debug)]
pub(super) struct MpiError {
    function: &'static str,
    text: String,
}

impl fmt::Display for MpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has failed: {}", self.function, self.text)
    }
}

/// A send or receive. Dropping it before it is complete leaks its memory, which the library may still use.
#[derive(Debug)]
pub(super) struct Pending {
    request: ffi::MPI_Request,
    packet: ManuallyDrop<Vec<u8>>,
    /// The bytes of `packet` that are sent, or that must arrive.
    length: usize,
    /// The number of bytes that have arrived. `None` before, or if it is not `length`.
    received: Option<usize>,
    is_complete: bool,
}

// SAFETY: a request may be used by any thread, one at a time (MPI_THREAD_SERIALIZED), and only functions of `Library`
// that borrow it mutably do so.
unsafe impl Send for Pending {}

impl Pending {
    fn new(packet: Vec<u8>, length: usize) -> Self {
        // SAFETY: `RSMPI_REQUEST_NULL` is a constant of the C part of the bindings.
        let request = unsafe { ffi::RSMPI_REQUEST_NULL };
        Self { request, packet: ManuallyDrop::new(packet), length, received: None, is_complete: false }
    }

    /// The bytes of a complete receive; `None` if their number is not the expected one.
    pub fn received(&self) -> Option<&[u8]> {
        self.received.map(|length| &self.packet[..length])
    }
}

/// The initialized library. There is one in a process. The mutable borrows make its calls come one after the other.
#[derive(Debug)]
pub(super) struct Library {
    /// Dropping it would call `MPI_Finalize`, which waits for all processes.
    universe: ManuallyDrop<Initialized>,
    sizes: PacketSizes,
    /// Packets that are not in use.
    free: Vec<Vec<u8>>,
}

struct Initialized(Universe);

impl fmt::Debug for Initialized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initialized")
    }
}

impl Library {
    /// Initializes MPI.
    ///
    /// # Errors
    /// See [`MpiLink::open`](super::MpiLink::open).
    pub fn open(world: &World, sizes: PacketSizes) -> Result<Self> {
        // Threads of a rank call in turn, each through `&mut Library`. So MPI_THREAD_MULTIPLE, with which libraries
        // take locks, is not needed.
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            let what = "MPI has been used by an earlier job of this process, and can be initialized only once";
            return Err(wrong(what, "start a process for each job"));
        };
        // From here on, the value is not dropped, see `finalize`.
        let universe = ManuallyDrop::new(Initialized(universe));
        if threading < Threading::Serialized {
            let what = format!("{} supports only threads of the level {threading:?}, not Serialized", library_name());
            return Err(wrong(
                what,
                "build it with support for threads, or build this program without the feature mpi",
            ));
        }
        let all = universe.0.world();
        let (rank, size) = (all.rank(), all.size());
        if (usize::try_from(rank), usize::try_from(size)) != (Ok(world.rank), Ok(world.size)) {
            let what = format!(
                "{} counts this process as rank {rank} of {size}, but by the variables of {} it is rank {} of {}",
                library_name(),
                world.launcher,
                world.rank,
                world.size
            );
            let help = "start the program by the mpirun of this library (with srun: `--mpi=pmix`), or build it without \
                        the feature mpi";
            return Err(wrong(what, help));
        }
        // SAFETY: MPI is initialized; both arguments are constants of the bindings.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
        check("MPI_Comm_set_errhandler", code).map_err(|e| wrong(e.to_string(), "check the MPI library"))?;
        Ok(Self { universe, sizes, free: Vec::new() })
    }

    pub fn sizes(&self) -> PacketSizes {
        self.sizes
    }

    /// A packet for [`Library::send`], with room for the longest one.
    pub fn packet(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| vec![0; self.sizes.of(Tag::Further).max(self.sizes.of(Tag::First))])
    }

    /// Takes back the packet of a complete send or receive.
    pub fn recycle(&mut self, pending: Pending) {
        if pending.is_complete {
            self.free.push(ManuallyDrop::into_inner(pending.packet));
        }
    }

    /// Begins to send the first `length` bytes of a packet.
    pub fn send(&mut self, to: usize, tag: Tag, packet: Vec<u8>, length: usize) -> Result<Pending, MpiError> {
        let mut send = Pending::new(packet, length);
        // SAFETY: the packet has `length` bytes, and stays where it is until the request is complete. Its length is
        // below 2^31, as that of every packet is.
        let code = unsafe {
            ffi::MPI_Isend(
                send.packet[..length].as_ptr().cast(),
                length as c_int,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag as c_int,
                ffi::RSMPI_COMM_WORLD,
                &mut send.request,
            )
        };
        check("MPI_Isend", code).map(|()| send)
    }

    /// Begins to receive the next packet with [`Tag::Further`], which must have `length` bytes.
    pub fn receive(&mut self, from: usize, length: usize) -> Result<Pending, MpiError> {
        let mut receive = Pending::new(self.packet(), length);
        // SAFETY: as in `send`; nothing else uses the packet meanwhile.
        let code = unsafe {
            ffi::MPI_Irecv(
                receive.packet[..length].as_mut_ptr().cast(),
                length as c_int,
                ffi::RSMPI_UINT8_T,
                from as c_int,
                Tag::Further as c_int,
                ffi::RSMPI_COMM_WORLD,
                &mut receive.request,
            )
        };
        check("MPI_Irecv", code).map(|()| receive)
    }

    /// Begins to receive a packet with [`Tag::First`] if one has arrived. A receive that began before could be left
    /// when the job ends.
    pub fn receive_first(&mut self, from: usize) -> Result<Option<Pending>, MpiError> {
        let mut status = MaybeUninit::zeroed();
        // SAFETY: a null pointer or number, which the library replaces.
        let mut message = unsafe { ffi::RSMPI_MESSAGE_NULL };
        let mut is_there = 0;
        // SAFETY: all pointers are those of variables of the types that the function writes.
        let code = unsafe {
            let (from, tag) = (from as c_int, Tag::First as c_int);
            ffi::MPI_Improbe(from, tag, ffi::RSMPI_COMM_WORLD, &mut is_there, &mut message, status.as_mut_ptr())
        };
        check("MPI_Improbe", code)?;
        if is_there == 0 {
            return Ok(None);
        }
        // SAFETY: the function has found a message, so it has written the status.
        let length = unsafe { count(status.as_ptr()) }?;
        let mut receive = Pending::new(self.packet(), length);
        if length > receive.packet.len() {
            let text = format!("the first packet of a message has {length} bytes");
            return Err(MpiError { function: "MPI_Improbe", text });
        }
        // SAFETY: as in `receive`; `message` is the one that was found.
        let code = unsafe {
            let bytes = receive.packet[..length].as_mut_ptr().cast();
            ffi::MPI_Imrecv(bytes, length as c_int, ffi::RSMPI_UINT8_T, &mut message, &mut receive.request)
        };
        check("MPI_Imrecv", code).map(|()| Some(receive))
    }

    /// Whether a send or receive is complete. MPI makes progress with all of them in this function.
    pub fn is_complete(&mut self, pending: &mut Pending) -> Result<bool, MpiError> {
        if pending.is_complete {
            return Ok(true);
        }
        let mut status = MaybeUninit::zeroed();
        let mut flag = 0;
        // SAFETY: the request is one that was begun and is not complete; the pointers are those of variables of the
        // types that the function writes.
        let code = unsafe { ffi::MPI_Test(&mut pending.request, &mut flag, status.as_mut_ptr()) };
        check("MPI_Test", code)?;
        if flag == 0 {
            return Ok(false);
        }
        // SAFETY: the request is complete, so the function has written the status. That of a send is not used.
        pending.received = Some(unsafe { count(status.as_ptr()) }.unwrap_or_default());
        pending.received.take_if(|length| *length != pending.length);
        pending.is_complete = true;
        Ok(true)
    }

    /// Ends MPI. Waits until all processes do the same.
    pub fn finalize(self) {
        drop(ManuallyDrop::into_inner(self.universe).0);
    }
}

/// The number of bytes of a message.
///
/// # Safety
/// A function of MPI has written the status.
unsafe fn count(status: *const ffi::MPI_Status) -> Result<usize, MpiError> {
    let mut bytes = 0;
    // SAFETY: the caller says so.
    let code = unsafe { ffi::MPI_Get_count(status, ffi::RSMPI_UINT8_T, &mut bytes) };
    check("MPI_Get_count", code)?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}

fn check(function: &'static str, code: c_int) -> Result<(), MpiError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the buffer has the length that the function may write.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    text.truncate(usize::try_from(length).unwrap_or_default());
    Err(MpiError { function, text: String::from_utf8_lossy(&text).into_owned() })
}

/// The name and version of the library, such as `Open MPI v4.1.4`.
fn library_name() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    version.split([',', '\n']).next().unwrap_or_default().trim().to_string()
}

fn wrong(what: impl Into<String>, help: &str) -> RankError {
    Diagnostic::new("MPI", what.into(), help).into()
}
