// The built-in guest: a driver for virtio disks and networks, in 32-bit protected mode without paging. What is different on
// the PCI bus is in pci.s.
//
// It runs where it is copied to, {code}; names in braces are constants of layout.rs. Whatever it finds, it tells
// through the debug port, a record at a time, and at the end it writes its exit code to the exit port.
//
// Some KVMs emulate unpaged code instruction by instruction, and know only a part of them. So: no iret (interrupts are
// let in at one place only, see .Lsleep), string instructions for data, and nothing newer than rdtsc.
//
// Throughout a device's turn: ebx = its entry in the table of parameters, ebp = its registers (on PCI: the common ones).
// esi = a queue where a routine is about one. All other registers are anybody's.

.pushsection .rodata.microvm_guest, "a", @progbits
.code32
.global iovirt_microvm_guest_start
.hidden iovirt_microvm_guest_start
iovirt_microvm_guest_start:
.Lbase:
    jmp .Lstart
    // Addresses that the code needs, where it finds them: eight bytes behind its beginning.
    .org .Lbase + 8
    .long .Lunexpected - .Lbase + {code}
    .long .Linterrupt - .Lbase + {code}

.Lstart:
    mov esp, {stack}
    cld
    // Interrupts come through the local APIC only: the old controllers are masked.
    mov al, 0xff
    out 0x21, al
    out 0xa1, al

    // All vectors are unexpected but one.
    mov edi, {idt}
    mov ecx, 256
1:  mov eax, [{code} + 8]
    call .Lgate
    dec ecx
    jnz 1b
    mov eax, [{code} + 12]
    mov edi, {idt} + 8 * {vector}
    call .Lgate
    mov dword ptr [{idt_pointer}], 0x7ff << 16
    mov dword ptr [{idt_pointer} + 4], {idt}
    lidt [{idt_pointer} + 2]
    // The spurious-interrupt register switches the local APIC on.
    mov dword ptr [{apic} + 0xf0], 0x1ff

    mov ebx, {devices}
    mov dword ptr [{bad}], 0
    call .Lclear_record
    rdtsc
    mov [{start}], eax
    mov [{start} + 4], edx
    mov eax, {kind_hello}
    call .Lreport

.Lnext_device:
    mov ebp, [ebx + {d_window}]
    mov eax, [ebx + {d_function}]
    mov [{function}], eax
    or eax, ebp
    jz .Lend
    call .Ldevice
    add ebx, {d_size}
    jmp .Lnext_device

.Lend:
    call .Lclear_record
    rdtsc
    mov [{start}], eax
    mov [{start} + 4], edx
    mov eax, {kind_end}
    call .Lreport
    mov eax, [{bad}]
    test eax, eax
    jz 1f
    mov al, {code_bad}
1:  out {exit_port}, al
2:  hlt
    jmp 2b

// ---------------------------------------------------------------------------------------------------------------------
// Interrupts

// Writes the gate of one vector. eax = handler, edi = gate, moves on to the next one. Keeps ecx.
.Lgate:
    mov edx, eax
    and edx, 0xffff
    or edx, {code_selector} << 16
    mov [edi], edx
    and eax, 0xffff0000
    or eax, 0x8e00                      // present, 32-bit interrupt gate
    mov [edi + 4], eax
    add edi, 8
    ret

// A device has something to say. It can only have interrupted .Lsleep, so no frame is needed to return.
.Linterrupt:
    inc dword ptr [{interrupts}]
    cmp dword ptr [{function}], 0
    jne .Linterrupt_pci
    mov eax, [ebp + 0x60]               // InterruptStatus
    mov [ebp + 0x64], eax               // InterruptACK
.Lacknowledged:
    mov dword ptr [{apic} + 0xb0], 0    // end of interrupt
    add esp, 12
    jmp .Lawake

// Sleeps until an interrupt. Nothing is lost between sti and hlt: interrupts are let in one instruction later.
.Lsleep:
    inc dword ptr [{halts}]
    sti
    hlt
.Lawake:
    ret

// An exception, or an interrupt that nobody asked for.
.Lunexpected:
    pop eax
    mov esp, {stack}
    mov [{value}], eax
    mov dword ptr [{what}], {trouble_exception}
    mov eax, {kind_trouble}
    call .Lreport
    mov al, {code_exception}
    out {exit_port}, al
1:  hlt
    jmp 1b

// ---------------------------------------------------------------------------------------------------------------------
// Reports

.Lclear_record:
    mov edi, {record}
    mov ecx, {record_words}
    xor eax, eax
    rep stosd
    ret

// Sends the record. eax = its kind.
.Lreport:
    mov [{kind}], eax
    mov eax, ebx
    sub eax, {devices}
    mov [{offset}], eax
    mov esi, {record}
    mov ecx, {record_words}
    mov edx, {debug_port}
    rep outsd
    ret

// Tells why a device cannot be driven. eax = reason, edx = a value that explains it. For a jump at the end of a turn.
.Ltrouble:
    mov [{what}], eax
    mov [{value}], edx
    inc dword ptr [{bad}]
    mov eax, {kind_trouble}
    call .Lreport
    xor eax, eax
    // Falls through.

// Sets the device's status. al = status; 0 resets.
.Lset_status:
    cmp dword ptr [{function}], 0
    jne .Lset_status_pci
    movzx eax, al
    mov [ebp + 0x70], eax               // Status
    ret

// ---------------------------------------------------------------------------------------------------------------------
// Any virtio device

.Ldevice:
    call .Lclear_record
    cmp dword ptr [{function}], 0
    jne .Lpci_device
    mov eax, {vector}                   // edge-triggered
    call .Lroute
    mov edx, [ebp]                      // MagicValue: "virt"
    mov eax, {trouble_no_device}
    cmp edx, 0x74726976
    jne .Ltrouble
    mov edx, [ebp + 4]                  // Version
    cmp edx, 2
    jne .Ltrouble
    lea eax, [ebp + 0x100]
    mov [{config}], eax                 // Config
    mov edx, [ebp + 8]                  // DeviceID
    jmp .Lby_type

// Has its line of the I/O APIC lead to the first processor. eax = how, and the vector.
.Lroute:
    mov ecx, [ebx + {d_gsi}]
    lea ecx, [ecx * 2 + 0x11]
    mov [{io_apic}], ecx
    mov dword ptr [{io_apic} + 0x10], 0
    dec ecx
    mov [{io_apic}], ecx
    mov [{io_apic} + 0x10], eax
    ret

// edx = type of the device.
.Lby_type:
    cmp edx, 2
    je .Ldisk
    cmp edx, 1
    je .Lnetwork
    mov eax, {trouble_no_device}
    jmp .Ltrouble

// Resets, and takes of the device's features those in eax, and VIRTIO_F_VERSION_1. Carry: it refuses.
.Lnegotiate:
    cmp dword ptr [{function}], 0
    jne .Lnegotiate_pci
    mov dword ptr [ebp + 0x70], 0       // Status: reset
    mov dword ptr [ebp + 0x70], 1       // ACKNOWLEDGE
    mov dword ptr [ebp + 0x70], 3       // DRIVER
    mov dword ptr [ebp + 0x14], 0       // DeviceFeaturesSel
    and eax, [ebp + 0x10]               // DeviceFeatures
    mov [{features}], eax
    mov [{taken}], eax
    mov dword ptr [ebp + 0x24], 0       // DriverFeaturesSel
    mov [ebp + 0x20], eax               // DriverFeatures
    mov dword ptr [ebp + 0x24], 1
    mov dword ptr [ebp + 0x20], 1
    mov dword ptr [ebp + 0x70], 11      // FEATURES_OK
    mov eax, [ebp + 0x70]
    test eax, 8
    jz 1f
    clc
    ret
1:  stc
    ret

// Sets a queue up with as many entries as it can have, 128 at most. esi = queue, eax = its index, edi = its rings.
.Lset_up_queue:
    mov [esi + {q_index}], eax
    mov [esi + {q_rings}], edi
    mov dword ptr [esi + {q_next}], 0
    mov dword ptr [esi + {q_seen}], 0
    mov ecx, {rings_len} / 4
    xor eax, eax
    rep stosd
    cmp dword ptr [{function}], 0
    jne .Lset_up_queue_pci
    mov eax, [esi + {q_index}]
    mov [ebp + 0x30], eax               // QueueSel
    mov edx, [ebp + 0x34]               // QueueNumMax
    call .Lchoose_size
    mov [ebp + 0x38], edx               // QueueNum
    lea eax, [ebp + 0x50]               // QueueNotify
    mov [esi + {q_doorbell}], eax
    mov edi, [esi + {q_rings}]
    mov [ebp + 0x80], edi               // QueueDesc
    mov dword ptr [ebp + 0x84], 0
    lea eax, [edi + {available}]
    mov [ebp + 0x90], eax               // QueueDriver
    mov dword ptr [ebp + 0x94], 0
    lea eax, [edi + {used}]
    mov [ebp + 0xa0], eax               // QueueDevice
    mov dword ptr [ebp + 0xa4], 0
    mov dword ptr [ebp + 0x44], 1       // QueueReady
    ret

// edx = most entries of the queue, becomes how many it gets. esi = queue.
.Lchoose_size:
    cmp edx, {queue_size}
    jbe 1f
    mov edx, {queue_size}
1:  mov [{size}], edx
    lea eax, [edx - 1]
    mov [esi + {q_mask}], eax
    ret

// The depth is what was asked for, as far as the queue has room. ecx = entries for each request. eax = depth.
.Lset_depth:
    mov eax, [{size}]
    xor edx, edx
    div ecx
    cmp eax, [ebx + {d_depth}]
    jbe 1f
    mov eax, [ebx + {d_depth}]
1:  mov [{depth}], eax
    ret

// Makes the chain that begins at descriptor eax available. esi = queue.
.Lmake_available:
    mov ecx, [esi + {q_next}]
    mov edx, ecx
    and edx, [esi + {q_mask}]
    mov edi, [esi + {q_rings}]
    mov [edi + edx * 2 + {available} + 4], ax
    inc ecx
    mov [esi + {q_next}], ecx
    ret

// Shows the device what was made available, and rings. Asks for an interrupt when all of it has been used, which takes
// VIRTIO_F_EVENT_IDX; a device without it interrupts as it likes. esi = queue.
.Lring:
    mov edi, [esi + {q_rings}]
    mov eax, [esi + {q_next}]
    mov ecx, [esi + {q_mask}]
    lea edx, [eax - 1]
    mov [edi + ecx * 2 + {available} + 6], dx   // used_event, behind the last entry
    mov [edi + {available} + 2], ax     // idx; stores are seen in this order
    inc dword ptr [{doorbells}]
    mov eax, [esi + {q_index}]
    mov edi, [esi + {q_doorbell}]
    cmp dword ptr [{function}], 0
    jne 1f
    mov [edi], eax
    ret
1:  mov [edi], ax
    ret

// Waits until all that was made available has been used. esi = queue.
.Lwait:
    mov edi, [esi + {q_rings}]
    mov ax, [edi + {used} + 2]
    cmp ax, [esi + {q_next}]
    je 1f
    call .Lsleep
    jmp .Lwait
1:  ret

// The next entry of the used ring: eax = descriptor, edx = length. esi = queue.
.Ltake_used:
    mov ecx, [esi + {q_seen}]
    mov eax, ecx
    and eax, [esi + {q_mask}]
    mov edi, [esi + {q_rings}]
    mov edx, [edi + eax * 8 + {used} + 8]
    mov eax, [edi + eax * 8 + {used} + 4]
    inc ecx
    mov [esi + {q_seen}], ecx
    ret

// Begins a phase. eax = which.
.Lbegin:
    push eax
    call .Lclear_record
    pop eax
    mov [{what}], eax
    mov dword ptr [{wait_min}], -1
    mov dword ptr [{item}], 0
    rdtsc
    mov [{start}], eax
    mov [{start} + 4], edx
    ret

// Ends and reports a phase.
.Lfinish:
    rdtsc
    mov [{end}], eax
    mov [{end} + 4], edx
    mov eax, [{mismatches}]
    add eax, [{failures}]
    add [{bad}], eax
    mov eax, {kind_phase}
    jmp .Lreport

// From here on a batch is waited for: before the doorbell, as the device may well answer before the guest's next instruction.
.Lstart_clock:
    rdtsc
    mov [{rang}], eax
    mov [{rang} + 4], edx
    ret

// A batch is home.
.Lstop_clock:
    rdtsc
    sub eax, [{rang}]
    sbb edx, [{rang} + 4]
    add [{wait}], eax
    adc [{wait} + 4], edx
    cmp eax, [{wait_min}]
    jae 1f
    mov [{wait_min}], eax
1:  cmp eax, [{wait_max}]
    jbe 2f
    mov [{wait_max}], eax
2:  ret

// The template: word i holds i * {scramble}.
.Lmake_template:
    mov edi, {template}
    mov ecx, {block} / 4
    xor eax, eax
1:  mov [edi], eax
    add edi, 4
    add eax, {scramble}
    dec ecx
    jnz 1b
    ret

// Makes the template the content of block eax: its sectors begin with their numbers.
.Lstamp_template:
    shl eax, 3
    mov edi, {template}
    mov ecx, 8
1:  mov [edi], eax
    inc eax
    add edi, 512
    dec ecx
    jnz 1b
    ret

// How many items the next batch has: those left, or {batch}. Zero: none.
.Lbatch_size:
    mov ecx, [{items}]
    sub ecx, [{item}]
    cmp ecx, [{batch}]
    jbe 1f
    mov ecx, [{batch}]
1:  mov [{in_batch}], ecx
    test ecx, ecx
    ret

// ---------------------------------------------------------------------------------------------------------------------
// A disk: chains of three descriptors (header, data, status), one for each request of a batch.

.Ldisk:
    mov eax, {disk_features}
    call .Lnegotiate
    mov eax, {trouble_refused}
    mov edx, [{features}]
    jc .Ltrouble
    mov esi, {queue_0}
    xor eax, eax
    mov edi, {rings_0}
    call .Lset_up_queue
    mov ecx, 3
    call .Lset_depth
    mov edx, [{size}]
    test eax, eax
    mov eax, {trouble_small_queue}
    jz .Ltrouble
    mov al, 15                          // DRIVER_OK
    call .Lset_status

    // The whole disk, or as much of it as was asked for.
    mov edi, [{config}]
    mov eax, [edi]                      // capacity in sectors
    mov edx, [edi + 4]
    shrd eax, edx, 3
    shr edx, 3
    jz 1f
    mov eax, -1
1:  cmp eax, [ebx + {d_items}]
    jbe 2f
    mov eax, [ebx + {d_items}]
2:  mov [{blocks}], eax
    mov [{value}], eax
    mov dword ptr [{what}], 2
    mov eax, {kind_device}
    call .Lreport
    call .Lmake_template
    call .Lmake_chains

    mov eax, [{depth}]
    mov [{batch}], eax
    mov eax, [{blocks}]
    mov [{items}], eax
    test dword ptr [{taken}], {f_read_only}
    jnz 3f
    mov eax, {phase_write}
    mov dword ptr [{request}], 1
    call .Ltransfer
    test dword ptr [{taken}], {f_flush}
    jz 3f
    call .Lflush
3:  mov eax, {phase_read}
    mov dword ptr [{request}], 0
    call .Ltransfer

    // Requests that are alone tell how long one takes.
    mov dword ptr [{batch}], 1
    mov eax, [ebx + {d_alone}]
    cmp eax, [{blocks}]
    jbe 4f
    mov eax, [{blocks}]
4:  mov [{items}], eax
    mov eax, {phase_read_alone}
    call .Ltransfer
    xor eax, eax                        // the memory of its queue is the next device's
    jmp .Lset_status

// Descriptors: address, address's upper half, length, flags (1: next, 2: written by the device) and next.
.Lmake_chains:
    mov edi, {rings_0}
    mov dword ptr [{slot}], 0
1:  mov ecx, [{slot}]
    lea edx, [ecx + ecx * 2]            // its first descriptor
    mov eax, ecx
    shl eax, 4
    add eax, {headers}
    mov [edi], eax
    mov dword ptr [edi + 8], 16
    inc edx
    mov eax, edx
    shl eax, 16
    or eax, 1
    mov [edi + 12], eax
    mov eax, ecx
    shl eax, 12
    add eax, {data}
    mov [edi + 16], eax
    mov dword ptr [edi + 24], {block}
    inc edx
    shl edx, 16
    mov [edi + 28], edx                 // its flags change from phase to phase
    lea eax, [ecx + {statuses}]
    mov [edi + 32], eax
    mov dword ptr [edi + 40], 1
    mov dword ptr [edi + 44], 2
    add edi, 48
    inc ecx
    mov [{slot}], ecx
    cmp ecx, [{depth}]
    jb 1b
    ret

// Moves {items} blocks, {batch} at a time. eax = phase.
.Ltransfer:
    call .Lbegin
.Ltransfer_batch:
    call .Lbatch_size
    jz .Lfinish
    mov dword ptr [{slot}], 0
1:  call .Lprepare
    call .Lnext_slot
    jb 1b
    call .Lstart_clock
    call .Lring
    call .Lwait
    call .Lstop_clock
    mov dword ptr [{slot}], 0
2:  call .Lcheck
    call .Lnext_slot
    jb 2b
    mov eax, [{in_batch}]
    add [{requests}], eax
    add [{item}], eax
    shl eax, 12
    add [{bytes}], eax
    jmp .Ltransfer_batch

// Carry: there is another slot in this batch.
.Lnext_slot:
    mov ecx, [{slot}]
    inc ecx
    mov [{slot}], ecx
    cmp ecx, [{in_batch}]
    ret

// The request of a slot: a block to be written, or a poisoned buffer to read into.
.Lprepare:
    mov ecx, [{slot}]
    mov byte ptr [ecx + {statuses}], 0xff
    mov eax, ecx
    add eax, [{item}]
    push eax
    shl ecx, 4
    mov edx, [{request}]
    mov [ecx + {headers}], edx          // type
    mov dword ptr [ecx + {headers} + 4], 0
    shl eax, 3
    mov [ecx + {headers} + 8], eax      // sector
    mov dword ptr [ecx + {headers} + 12], 0
    lea ecx, [ecx + ecx * 2]            // 48 bytes of descriptors
    mov eax, 1
    test edx, edx
    jnz 1f
    mov eax, 3
1:  mov [ecx + {rings_0} + 28], ax
    pop eax
    mov ecx, [{slot}]
    shl ecx, 12
    lea edx, [ecx + {data}]
    cmp dword ptr [{request}], 0
    jz 2f
    push edx
    call .Lstamp_template
    pop edi
    mov esi, {template}
    mov ecx, {block} / 4
    rep movsd
    jmp 4f
2:  mov ecx, 8
3:  mov dword ptr [edx], -1
    add edx, 512
    dec ecx
    jnz 3b
4:  mov esi, {queue_0}
    mov eax, [{slot}]
    lea eax, [eax + eax * 2]
    jmp .Lmake_available

// The answer to the request of a slot.
.Lcheck:
    mov ecx, [{slot}]
    cmp byte ptr [ecx + {statuses}], 0
    mov edi, {failures}
    jne .Lcount_bad
    cmp dword ptr [{request}], 0
    jne 1f
    test dword ptr [ebx + {d_flags}], {flag_verify}
    jz 1f
    test dword ptr [{taken}], {f_read_only}
    jnz 1f                              // nothing was written
    mov eax, ecx
    add eax, [{item}]
    call .Lstamp_template
    mov edi, [{slot}]
    shl edi, 12
    add edi, {data}
    mov esi, {template}
    mov ecx, {block} / 4
    repe cmpsd
    mov edi, {mismatches}
    jne .Lcount_bad
    add dword ptr [{verified}], {block}
1:  mov esi, {queue_0}
    ret

// Counts a bad item and keeps the number of the first. edi = counter.
.Lcount_bad:
    mov eax, [{mismatches}]
    add eax, [{failures}]
    jnz 1f
    mov eax, [{slot}]
    add eax, [{item}]
    mov [{first_bad}], eax
1:  inc dword ptr [edi]
    mov esi, {queue_0}
    ret

// One flush, in the first slot: its header goes on to its status.
.Lflush:
    mov eax, {phase_flush}
    call .Lbegin
    mov dword ptr [{slot}], 0
    mov byte ptr [{statuses}], 0xff
    mov dword ptr [{headers}], 4
    mov dword ptr [{headers} + 8], 0
    mov dword ptr [{rings_0} + 12], 2 << 16 | 1
    mov esi, {queue_0}
    xor eax, eax
    call .Lmake_available
    call .Lstart_clock
    call .Lring
    call .Lwait
    call .Lstop_clock
    mov dword ptr [{rings_0} + 12], 1 << 16 | 1
    inc dword ptr [{requests}]
    cmp byte ptr [{statuses}], 0
    je .Lfinish
    mov edi, {failures}
    call .Lcount_bad
    jmp .Lfinish

// ---------------------------------------------------------------------------------------------------------------------
// A network: frames of one descriptor each, sent by queue 1, and where they come back, received by queue 0.

.Lnetwork:
    mov eax, {network_features}
    call .Lnegotiate
    mov eax, {trouble_refused}
    mov edx, [{features}]
    jc .Ltrouble
    mov esi, {queue_0}
    xor eax, eax
    mov edi, {rings_0}
    call .Lset_up_queue
    mov esi, {queue_1}
    mov eax, 1
    mov edi, {rings_1}
    call .Lset_up_queue
    // A network may lose what comes while the device renews its buffers below, of which there are as many as entries.
    mov ecx, 4
    call .Lset_depth
    mov edx, [{size}]
    test eax, eax
    mov eax, {trouble_small_queue}
    jz .Ltrouble
    mov al, 15                          // DRIVER_OK
    call .Lset_status
    mov eax, [{depth}]
    mov [{batch}], eax
    mov dword ptr [{what}], 1
    mov eax, [ebx + {d_frame}]
    mov [{value}], eax
    mov eax, {kind_device}
    call .Lreport
    call .Lmake_template
    call .Lmake_frames

    test dword ptr [ebx + {d_flags}], {flag_verify}
    jz 1f
    call .Lknock
    mov edx, 0
    mov eax, {trouble_silent}
    jc .Ltrouble
1:  mov eax, {phase_frames}
    mov ecx, [ebx + {d_items}]
    mov [{items}], ecx
    call .Lexchange
    test dword ptr [ebx + {d_flags}], {flag_verify}
    jz 2f
    mov dword ptr [{batch}], 1
    mov ecx, [ebx + {d_alone}]
    mov [{items}], ecx
    mov eax, {phase_frames_alone}
    call .Lexchange
2:  xor eax, eax
    jmp .Lset_status

// A frame for each slot, from and to the card's own address, and the descriptors of both queues.
.Lmake_frames:
    mov dword ptr [{slot}], 0
1:  mov ecx, [{slot}]
    mov eax, ecx
    shl eax, 4
    mov edx, ecx
    shl edx, 11
    lea edi, [edx + {sent}]
    mov [eax + {rings_1}], edi
    mov ecx, [ebx + {d_frame}]
    add ecx, 12
    mov [eax + {rings_1} + 8], ecx
    add edx, {received}
    mov [eax + {rings_0}], edx
    mov dword ptr [eax + {rings_0} + 8], {frame_room}
    mov dword ptr [eax + {rings_0} + 12], 2

    push edi
    xor eax, eax
    mov ecx, 3
    rep stosd                           // the header: nothing to compute, nothing to split
    mov ecx, [ebx + {d_frame}]
    shr ecx, 2
    mov esi, {template}
    rep movsd
    pop edi
    mov edx, [{config}]
    mov eax, [edx]                      // the address, 6 bytes
    mov edx, [edx + 4]
    mov [edi + 12], eax
    mov [edi + 16], dx
    mov [edi + 18], eax
    mov [edi + 22], dx
    mov word ptr [edi + 24], 0xb588     // EtherType 0x88b5: for experiments
    mov ecx, [{slot}]
    inc ecx
    mov [{slot}], ecx
    cmp ecx, [{depth}]
    jb 1b
    ret

// Sends one frame until it comes back: right after the start a network may still be getting ready. Carry: it never did.
.Lknock:
    mov esi, {queue_0}
    xor eax, eax
    call .Lmake_available
    call .Lring
    mov dword ptr [{slot}], {knocks}
1:  mov esi, {queue_1}
    xor eax, eax
    call .Lmake_available
    call .Lring
    call .Lwait
    call .Lstart_clock
2:  mov ax, [{rings_0} + {used} + 2]
    cmp ax, [{queue_0} + {q_next}]
    je 3f
    rdtsc
    sub eax, [{rang}]
    sbb edx, [{rang} + 4]
    jnz 4f
    cmp eax, {knock_patience}
    jb 2b
4:  dec dword ptr [{slot}]
    jnz 1b
    stc
    ret
3:  inc dword ptr [{queue_0} + {q_seen}]
    clc
    ret

// Sends {items} frames, {batch} at a time, and has them back. eax = phase.
.Lexchange:
    call .Lbegin
.Lexchange_batch:
    call .Lbatch_size
    jz .Lfinish
    test dword ptr [ebx + {d_flags}], {flag_verify}
    jz 2f
    mov esi, {queue_0}
    mov dword ptr [{slot}], 0
1:  mov eax, [{slot}]
    call .Lmake_available
    call .Lnext_slot
    jb 1b
    call .Lring
2:  mov esi, {queue_1}
    mov dword ptr [{slot}], 0
3:  call .Lnumber_frame
    mov eax, [{slot}]
    call .Lmake_available
    call .Lnext_slot
    jb 3b
    call .Lstart_clock
    call .Lring
    call .Lwait
    test dword ptr [ebx + {d_flags}], {flag_verify}
    jz 5f
    mov esi, {queue_0}
    call .Lwait
    call .Lstop_clock
    mov dword ptr [{slot}], 0
4:  call .Lcheck_frame
    call .Lnext_slot
    jb 4b
    jmp 6f
5:  call .Lstop_clock
6:  mov eax, [{in_batch}]
    add [{requests}], eax
    add [{item}], eax
    mul dword ptr [ebx + {d_frame}]
    add [{bytes}], eax
    jmp .Lexchange_batch

// The number of a slot's frame stands at the beginning and at the end of its payload.
.Lnumber_frame:
    mov edi, [{slot}]
    mov eax, edi
    add eax, [{item}]
    shl edi, 11
    add edi, {sent} + 12
    mov [edi + 16], eax
    add edi, [ebx + {d_frame}]
    mov [edi - 4], eax
    ret

// The next frame that came must be the one that a slot sent.
.Lcheck_frame:
    mov esi, {queue_0}
    call .Ltake_used
    sub edx, 12
    cmp edx, [ebx + {d_frame}]
    jne 1f
    shl eax, 11
    lea edi, [eax + {received} + 12]
    mov esi, [{slot}]
    shl esi, 11
    add esi, {sent} + 12
    mov ecx, [ebx + {d_frame}]
    shr ecx, 2
    repe cmpsd
    jne 1f
    add [{verified}], edx
    ret
1:  mov edi, {mismatches}
    jmp .Lcount_bad
