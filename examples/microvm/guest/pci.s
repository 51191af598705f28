// The built-in guest on the PCI bus: configuration space by the two ports, virtio's structures by capabilities, and one
// MSI-X message for everything, or the function's pin where it has a line. Windows are where the bus placed them.

// A message needs no acknowledgement. A pin is held until somebody reads why.
.Linterrupt_pci:
    cmp dword ptr [ebx + {d_gsi}], 0
    je .Lacknowledged
    mov eax, [{structures} + 12]
    mov al, [eax]                       // ISR status
    jmp .Lacknowledged

// eax = register of the configuration space, becomes its value. Keeps ecx, esi and edi.
.Lread_config:
    or eax, [{function}]
    mov edx, 0xcf8
    out dx, eax
    mov edx, 0xcfc
    in eax, dx
    ret

// eax = register of the configuration space, ecx = value.
.Lwrite_config:
    or eax, [{function}]
    mov edx, 0xcf8
    out dx, eax
    mov edx, 0xcfc
    mov eax, ecx
    out dx, eax
    ret

// eax = offset in window ecx, becomes an address.
.Lin_window:
    push eax
    lea eax, [ecx * 4 + 0x10]
    call .Lread_config
    and eax, -16
    pop edx
    add eax, edx
    ret

// Finds out who is there and where its registers are.
.Lpci_device:
    mov ebp, {structures}               // no registers yet: a reset goes nowhere
    xor eax, eax
    call .Lread_config
    mov edx, eax
    cmp ax, 0x1af4
    mov eax, {trouble_no_device}
    jne .Ltrouble
    shr edx, 16
    sub edx, 0x1040                     // type of the device
    push edx
    mov dword ptr [{structures} + 4], 0
    mov eax, 4
    mov ecx, 6                          // answer at the windows, reach memory
    call .Lwrite_config
    mov eax, 0x34
    call .Lread_config
    movzx edi, al
.Lnext_capability:
    test edi, edi
    jz .Lcapabilities_done
    mov eax, edi
    call .Lread_config
    mov esi, eax                        // id, next, and two bytes that depend on the id
    cmp al, 0x11
    je .Lmessages
    cmp al, 9
    jne .Lcapability_done
    // A structure of virtio: in which window, and where.
    lea eax, [edi + 4]
    call .Lread_config
    movzx ecx, al
    lea eax, [edi + 8]
    call .Lread_config
    call .Lin_window
    mov ecx, esi
    shr ecx, 24                         // which structure
    cmp ecx, 4
    ja .Lcapability_done
    mov [ecx * 4 + {structures}], eax
    cmp ecx, 2
    jne .Lcapability_done
    lea eax, [edi + 16]
    call .Lread_config
    mov [{multiplier}], eax
.Lcapability_done:
    shr esi, 8
    mov eax, esi
    movzx edi, al
    jmp .Lnext_capability

// The table of messages: the first one goes to the first processor. Left off where the pin is used.
.Lmessages:
    cmp dword ptr [ebx + {d_gsi}], 0
    jne .Lcapability_done
    lea eax, [edi + 4]
    call .Lread_config
    mov ecx, eax
    and ecx, 7
    and eax, -8
    call .Lin_window
    mov dword ptr [eax], {apic}
    mov dword ptr [eax + 4], 0
    mov dword ptr [eax + 8], {vector}
    mov dword ptr [eax + 12], 0
    mov ecx, esi
    or ecx, 1 << 31                     // MSI-X enable
    mov eax, edi
    call .Lwrite_config
    jmp .Lcapability_done

.Lcapabilities_done:
    cmp dword ptr [ebx + {d_gsi}], 0
    je 1f
    mov eax, {vector} + 0x8000          // level-triggered
    call .Lroute
1:
    mov ebp, [{structures} + 4]         // common registers
    mov eax, [{structures} + 16]
    mov [{config}], eax
    pop edx
    jmp .Lby_type

// al = status.
.Lset_status_pci:
    mov [ebp + 20], al                  // device_status
    ret

// As .Lnegotiate.
.Lnegotiate_pci:
    mov byte ptr [ebp + 20], 0
1:  cmp byte ptr [ebp + 20], 0          // the reset is over when it reads as 0
    jne 1b
    mov byte ptr [ebp + 20], 1
    mov byte ptr [ebp + 20], 3
    mov dword ptr [ebp], 0              // device_feature_select
    and eax, [ebp + 4]                  // device_feature
    mov [{features}], eax
    mov [{taken}], eax
    mov dword ptr [ebp + 8], 0          // driver_feature_select
    mov [ebp + 12], eax                 // driver_feature
    mov dword ptr [ebp + 8], 1
    mov dword ptr [ebp + 12], 1
    mov byte ptr [ebp + 20], 11
    mov al, [ebp + 20]
    test al, 8
    jz 2f
    clc
    ret
2:  stc
    ret

// As .Lset_up_queue, whose first part is done.
.Lset_up_queue_pci:
    mov eax, [esi + {q_index}]
    mov [ebp + 22], ax                  // queue_select
    movzx edx, word ptr [ebp + 24]      // queue_size
    call .Lchoose_size
    mov [ebp + 24], dx
    mov word ptr [ebp + 26], 0          // queue_msix_vector
    movzx eax, word ptr [ebp + 30]      // queue_notify_off
    mul dword ptr [{multiplier}]
    add eax, [{structures} + 8]
    mov [esi + {q_doorbell}], eax
    mov edi, [esi + {q_rings}]
    mov [ebp + 32], edi                 // queue_desc
    mov dword ptr [ebp + 36], 0
    lea eax, [edi + {available}]
    mov [ebp + 40], eax                 // queue_driver
    mov dword ptr [ebp + 44], 0
    lea eax, [edi + {used}]
    mov [ebp + 48], eax                 // queue_device
    mov dword ptr [ebp + 52], 0
    mov word ptr [ebp + 28], 1          // queue_enable
    ret
