// SPDX-License-Identifier: MIT OR Apache-2.0
//! Classic BPF: programs by which the kernel spreads datagrams over the sockets of one port, or keeps
//! frames from a packet socket or a TAP.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;
use super::faults::{self, Call};

/// One instruction. The machine has a register, another one for an offset, and sees what the socket
/// would get: the UDP payload, or the frame without the VLAN tag that the kernel took out.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Instruction(libc::sock_filter);

impl Instruction {
    const fn new(code: u32, k: u32) -> Self {
        Self(libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: 0,
            k,
        })
    }
}

/// Loads the byte at `offset`. If there is none, the program ends and returns 0.
pub(crate) const fn load_byte(offset: u32) -> Instruction {
    Instruction::new(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, offset)
}

/// The same for two bytes, in network order.
pub(crate) const fn load_u16(offset: u32) -> Instruction {
    Instruction::new(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, offset)
}

/// The same, at an additional distance.
pub(crate) const fn load_u16_further_on(offset: u32) -> Instruction {
    Instruction::new(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, offset)
}

/// Makes the length of the IPv4 header at `offset` the distance.
pub(crate) const fn measure_ipv4_header(offset: u32) -> Instruction {
    Instruction::new(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, offset)
}

/// Loads the destination type of the frame: [`TO_THIS_MACHINE`], or others.
pub(crate) const fn load_packet_type() -> Instruction {
    let offset = libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE;
    Instruction::new(
        libc::BPF_LD | libc::BPF_B | libc::BPF_ABS,
        offset.cast_unsigned(),
    )
}

/// Loads the mark of the frame, which is that of its socket if this machine has sent it.
pub(crate) const fn load_mark() -> Instruction {
    let offset = libc::SKF_AD_OFF + libc::SKF_AD_MARK;
    Instruction::new(
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        offset.cast_unsigned(),
    )
}

/// Clears all bits of the register but these.
pub(crate) const fn keep_bits(mask: u32) -> Instruction {
    Instruction::new(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask)
}

/// The destination is the address of the interface.
pub(crate) const TO_THIS_MACHINE: u32 = libc::PACKET_HOST as u32;

/// Skips `then` instructions if the register has any bit of `mask`, and `otherwise` if it has none.
pub(crate) const fn skip_if_any(mask: u32, then: u8, otherwise: u8) -> Instruction {
    let mut jump = Instruction::new(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, mask);
    (jump.0.jt, jump.0.jf) = (then, otherwise);
    jump
}

/// Skips `then` instructions if the register is `value`, and `otherwise` if it is not.
pub(crate) const fn skip_if(value: u32, then: u8, otherwise: u8) -> Instruction {
    let mut jump = Instruction::new(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value);
    (jump.0.jt, jump.0.jf) = (then, otherwise);
    jump
}

/// Subtracts `value` from the register.
pub(crate) const fn subtract(value: u32) -> Instruction {
    Instruction::new(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K, value)
}

/// Divides the register by `value` and keeps the remainder.
pub(crate) const fn remainder(value: u32) -> Instruction {
    Instruction::new(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, value)
}

/// Ends the program and returns the register.
pub(crate) const fn answer() -> Instruction {
    Instruction::new(libc::BPF_RET | libc::BPF_A, 0)
}

/// Ends the program and returns `value`.
pub(crate) const fn answer_with(value: u32) -> Instruction {
    Instruction::new(libc::BPF_RET | libc::BPF_K, value)
}

/// Makes `program` choose the socket of each datagram, for all sockets that share the port of this
/// one: 0 is the one that was bound first. With any other result than the number of a socket, the
/// kernel chooses.
pub(crate) fn attach_to_port(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

/// Makes `program` choose what the socket gets: as many bytes of each frame as it returns, and none
/// of it for 0.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    attach(socket, libc::SO_ATTACH_FILTER, program)
}

/// The same for all queues of a TAP, and the frames that the kernel sends to them.
pub(crate) fn attach_to_tap(queue: &File, program: &[Instruction]) -> io::Result<()> {
    let program = described(program)?;
    // SAFETY: TUNATTACHFILTER reads one `sock_fprog` and as many instructions as it says, which
    // `described` has seen to. The kernel copies both before it returns. It keeps the address as well,
    // and tries to read there again for a queue that is attached later; it never writes.
    let result =
        unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNATTACHFILTER, &raw const program) };
    check(result).map(drop)
}

/// Makes the TAP's queues get every frame again.
pub(crate) fn detach_from_tap(queue: &File) -> io::Result<()> {
    // SAFETY: TUNDETACHFILTER reads nothing.
    let result = unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNDETACHFILTER,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    check(result).map(drop)
}

/// In the kernel's format. Valid for as long as `program` lives.
fn described(program: &[Instruction]) -> io::Result<libc::sock_fprog> {
    let len = faults::before(Call::AttachFilter, program.len())?;
    Ok(libc::sock_fprog {
        len: u16::try_from(len).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    })
}

fn attach(socket: BorrowedFd<'_>, option: libc::c_int, program: &[Instruction]) -> io::Result<()> {
    let program = described(program)?;
    // SAFETY: pointer and length describe `program`, which in turn points to as many instructions as
    // it says, each a transparent `sock_filter`. The kernel copies both before it returns, and writes
    // to neither.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    check(result).map(drop)
}
