//! The MPI library. Only this file calls it, through the raw bindings of the crate `mpi`. The safe requests of that
//! crate must complete before their scope ends, but requests to a rank that has ended never complete.
//!
//! The library only gets memory that belongs to this file ([`PendingPacket`]). If a job fails, the packets in flight are
//! never freed, because the network may still write into them, and cancelling a receive can block until the other
//! process responds.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};

use crate::diagnostic::Diagnostic;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::Communicator;

use crate::ranks::error::{RankError, Result};
use crate::ranks::launch::World;
use crate::ranks::message::MAX_HEAD_BYTES;

/// The data bytes in the first packet of a message. Together with the head they are below the eager limit of the MPI
/// library, up to which a packet is sent without waiting for its receiver (4 KiB for shared memory in Open MPI).
const FIRST_DATA_BYTES: usize = 2 << 10;

/// The approximate number of bytes that one rank has in flight to and from all ranks.
const IN_FLIGHT_BYTES: usize = 64 << 20;

/// The minimum and maximum size of a packet in bytes.
const PACKET_BYTES: [usize; 2] = [64 << 10, 1 << 20];

/// The position of a packet in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketTag {
    /// The first packet, which contains the header.
    First = 1,
    Further = 2,
}

/// The sizes of packets. They are the same on all ranks, because sender and receiver divide a message independently.
#[derive(Clone, Copy, Debug)]
pub(super) struct PacketSizes {
    further: usize,
}

impl PacketSizes {
    /// Returns the sizes for a job with this number of ranks. More ranks get smaller packets, because each pair of
    /// ranks has several packets in flight.
    pub fn for_job(ranks: usize) -> Self {
        let [least, most] = PACKET_BYTES;
        Self { further: (IN_FLIGHT_BYTES / (4 * ranks)).clamp(least, most) }
    }

    /// Returns the maximum size in bytes of a packet with this tag.
    pub fn max_bytes(self, tag: PacketTag) -> usize {
        match tag {
            PacketTag::First => MAX_HEAD_BYTES + FIRST_DATA_BYTES,
            PacketTag::Further => self.further,
        }
    }
}

/// An error of an MPI function, with the error text of the library.
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

/// A send or receive in flight. Dropping it before it is complete leaks its memory, which the library may still use.
#[derive(Debug)]
pub(super) struct PendingPacket {
    request: ffi::MPI_Request,
    packet: ManuallyDrop<Vec<u8>>,
    /// The number of bytes of `packet` to send, or the number that must arrive.
    length: usize,
    /// The number of bytes that have arrived. `None` before that, or if the number is not `length`.
    received: Option<usize>,
    is_complete: bool,
}

// SAFETY: a request may be used by any thread, one at a time (MPI_THREAD_SERIALIZED), and only functions of `MpiLibrary`
// that borrow it mutably do so.
unsafe impl Send for PendingPacket {}

impl PendingPacket {
    fn new(packet: Vec<u8>, length: usize) -> Self {
        // SAFETY: `RSMPI_REQUEST_NULL` is a constant of the C part of the bindings.
        let request = unsafe { ffi::RSMPI_REQUEST_NULL };
        Self { request, packet: ManuallyDrop::new(packet), length, received: None, is_complete: false }
    }

    /// Returns the bytes of a complete receive; `None` if their number is not the expected one.
    pub fn received(&self) -> Option<&[u8]> {
        self.received.map(|length| &self.packet[..length])
    }
}

/// The initialized library. A process has only one. The mutable borrows serialize its calls.
#[derive(Debug)]
pub(super) struct MpiLibrary {
    /// Never dropped, because dropping would call `MPI_Finalize`, which waits for all processes.
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

impl MpiLibrary {
    /// Initializes MPI.
    ///
    /// # Errors
    /// The errors of [`MpiLink::open`](super::MpiLink::open).
    pub fn open(world: &World, sizes: PacketSizes) -> Result<Self> {
        // The threads of a rank make their calls one after the other, through `&mut MpiLibrary`. So MPI_THREAD_MULTIPLE,
        // which makes libraries use locks, is not needed.
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            let what = "MPI has been used by an earlier job of this process, and can be initialized only once";
            return Err(wrong(what, "start a process for each job"));
        };
        // From here on, the value must not be dropped; see `finalize`.
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

    pub fn packet_sizes(&self) -> PacketSizes {
        self.sizes
    }

    /// Returns an empty packet for [`MpiLibrary::send`], with space for the longest one.
    pub fn new_packet(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| {
            vec![0; self.sizes.max_bytes(PacketTag::Further).max(self.sizes.max_bytes(PacketTag::First))]
        })
    }

    /// Takes back the packet of a complete send or receive, for reuse.
    pub fn recycle(&mut self, pending: PendingPacket) {
        if pending.is_complete {
            self.free.push(ManuallyDrop::into_inner(pending.packet));
        }
    }

    /// Starts to send the first `length` bytes of a packet.
    pub fn send(
        &mut self,
        to: usize,
        tag: PacketTag,
        packet: Vec<u8>,
        length: usize,
    ) -> Result<PendingPacket, MpiError> {
        let mut send = PendingPacket::new(packet, length);
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

    /// Starts to receive the next packet with [`PacketTag::Further`], which must have `length` bytes.
    pub fn receive(&mut self, from: usize, length: usize) -> Result<PendingPacket, MpiError> {
        let mut receive = PendingPacket::new(self.new_packet(), length);
        // SAFETY: the packet stays where it is until the request is complete, and nothing else uses it until then.
        let code = unsafe {
            ffi::MPI_Irecv(
                receive.packet[..length].as_mut_ptr().cast(),
                length as c_int,
                ffi::RSMPI_UINT8_T,
                from as c_int,
                PacketTag::Further as c_int,
                ffi::RSMPI_COMM_WORLD,
                &mut receive.request,
            )
        };
        check("MPI_Irecv", code).map(|()| receive)
    }

    /// Starts to receive a packet with [`PacketTag::First`] if one has arrived. A receive that was started before the
    /// arrival could still be in flight when the job ends.
    pub fn receive_first(&mut self, from: usize) -> Result<Option<PendingPacket>, MpiError> {
        let mut status = MaybeUninit::zeroed();
        // SAFETY: a null pointer or number is a valid start value, which the library replaces.
        let mut message = unsafe { ffi::RSMPI_MESSAGE_NULL };
        let mut is_there = 0;
        // SAFETY: all pointers point to variables of the types that the function writes.
        let code = unsafe {
            let (from, tag) = (from as c_int, PacketTag::First as c_int);
            ffi::MPI_Improbe(from, tag, ffi::RSMPI_COMM_WORLD, &mut is_there, &mut message, status.as_mut_ptr())
        };
        check("MPI_Improbe", code)?;
        if is_there == 0 {
            return Ok(None);
        }
        // SAFETY: the function has found a message, so it has written the status.
        let length = unsafe { count(status.as_ptr()) }?;
        let mut receive = PendingPacket::new(self.new_packet(), length);
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

    /// Tells whether a send or receive is complete. In this function, MPI makes progress with all sends and receives.
    pub fn is_complete(&mut self, pending: &mut PendingPacket) -> Result<bool, MpiError> {
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

    /// Finalizes MPI. Waits until all processes do the same.
    pub fn finalize(self) {
        drop(ManuallyDrop::into_inner(self.universe).0);
    }
}

/// Returns the number of bytes of a message.
///
/// # Safety
/// A function of MPI has written the status.
unsafe fn count(status: *const ffi::MPI_Status) -> Result<usize, MpiError> {
    let mut bytes = 0;
    // SAFETY: the caller guarantees that MPI has written the status.
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

/// Returns the name and version of the library, such as `Open MPI v4.1.4`.
fn library_name() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    version.split([',', '\n']).next().unwrap_or_default().trim().to_string()
}

fn wrong(what: impl Into<String>, help: &str) -> RankError {
    Diagnostic::new("MPI", what.into(), help).into()
}
