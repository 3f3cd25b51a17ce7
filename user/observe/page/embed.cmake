# SPDX-License-Identifier: Apache-2.0
# sockalarm_embed_page(TARGET): page/index.html as the functions of page.h. It is written into a source when CMake runs, which
# it does again when the page has changed.

# The SHA-256 of a text in Base64, as a Content-Security-Policy names it (CSP3, 2.3.1).
function(sockalarm_sha256_base64 text result)
  string(SHA256 hex "${text}")
  string(APPEND hex 0)  # 256 bits are 42 digits of 6 bits and one of 4, which is filled up to 6 by zeros
  set(alphabet ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/)
  set(base64 "")
  foreach(digit RANGE 42)
    math(EXPR first_bit "6 * ${digit}")
    math(EXPR nibble "${first_bit} / 4")
    string(SUBSTRING ${hex} ${nibble} 2 byte)
    math(EXPR value "(0x${byte} >> (2 - ${first_bit} % 4)) & 63")
    string(SUBSTRING ${alphabet} ${value} 1 character)
    string(APPEND base64 ${character})
  endforeach()
  set(${result} "${base64}=" PARENT_SCOPE)
endfunction()

# What is between <NAME> and </NAME>, of which there is one.
function(sockalarm_element page name result)
  string(FIND "${page}" "<${name}>" begin)
  string(FIND "${page}" "</${name}>" end)
  string(FIND "${page}" "<${name}>" last REVERSE)
  if(begin EQUAL -1 OR NOT begin EQUAL last OR end LESS begin)
    message(FATAL_ERROR "index.html must have one <${name}>")
  endif()
  string(LENGTH "<${name}>" length)
  math(EXPR begin "${begin} + ${length}")
  math(EXPR length "${end} - ${begin}")
  string(SUBSTRING "${page}" ${begin} ${length} content)
  set(${result} "${content}" PARENT_SCOPE)
endfunction()

set(SOCKALARM_PAGE_DIR ${CMAKE_CURRENT_LIST_DIR})
function(sockalarm_embed_page target)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${SOCKALARM_PAGE_DIR}/index.html)
  file(READ ${SOCKALARM_PAGE_DIR}/index.html page)
  sockalarm_element("${page}" script script)
  sockalarm_element("${page}" style style)
  sockalarm_sha256_base64("${script}" script_hash)
  sockalarm_sha256_base64("${style}" style_hash)
  configure_file(${SOCKALARM_PAGE_DIR}/page.cpp.in ${CMAKE_CURRENT_BINARY_DIR}/page.cpp @ONLY)
  target_sources(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/page.cpp)
endfunction()
